"""Loggers of other libraries: they hold what metrics.jsonl holds, and none of them can end or change a run."""

import json
import struct
import subprocess
import sys

import pytest

import fedddp
from fedddp.telemetry.loggers.base import flat

SMALL = {
    "data": {"name": "synthetic", "args": {"num_train": 60, "num_test": 20}, "partition": {"num_clients": 3}},
    "model": {"name": "mlp", "hidden": 8},
    "telemetry": {"progress": "off", "tensorboard": False},
}
SEEN = []


class Recording:
    """A logger of one's own."""

    def __init__(self, run):
        self.run, self.rounds = run, []
        SEEN.append(self)

    def round(self, record):
        self.rounds.append(record.metrics["round"])
        if len(self.rounds) == 3 and self.run.name == "failing":
            raise SystemExit("the server of the logger is gone")

    def close(self, summary):
        self.summary = summary


class Unopened(Recording):
    def __init__(self, run):
        raise RuntimeError("no account")


def trained(folder, *loggers, **run):
    run = {"dir": str(folder), "rounds": 4, "threads": 1, "name": "small", **run}
    return fedddp.run(SMALL, {"telemetry.loggers": list(loggers)}, run=run)


def test_a_logger_of_ones_own_sees_every_round_and_the_summary(tmp_path):
    SEEN.clear()
    result = trained(tmp_path, f"{__name__}:Recording")
    (logger,) = SEEN
    assert logger.rounds == [1, 2, 3, 4]
    assert logger.summary == result.summary
    assert logger.run.folder == result.folder
    assert logger.run.config["model.hidden"] == 8
    assert not [key for key, value in logger.run.config.items() if str(tmp_path) in str(value)]


@pytest.mark.parametrize("name", ["Recording", "Unopened"])
def test_a_logger_that_fails_is_dropped_with_one_warning_and_changes_nothing(tmp_path, logged, name):
    SEEN.clear()
    plain = trained(tmp_path / "plain")
    failing = trained(tmp_path / "failing", f"{__name__}:{name}", name="failing")
    assert failing.summary["model_sha256"] == plain.summary["model_sha256"]
    assert json.loads((failing.folder / "status.json").read_text())["state"] == "done"
    (warning,) = [line for line in logged if "telemetry.loggers" in line]
    assert "the run continues" in warning
    if name == "Recording":
        assert SEEN[0].rounds == [1, 2, 3]
        assert not hasattr(SEEN[0], "summary")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("no.such:Logger", "cannot be imported"),
        ("json:Logger", "has no 'Logger'"),
        ("mlflow", "pip install 'fedddp[mlflow]'"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(tmp_path, monkeypatch, name, said):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(fedddp.UsageError, match=r"telemetry\.loggers") as refused:
        trained(tmp_path / "runs", name)
    assert said in str(refused.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_no_library_is_imported_unless_it_is_named():
    code = "import sys, fedddp.setup.assemble; print(*{'wandb', 'mlflow'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def known(metrics):
    """What a line of metrics.jsonl says, without what is null there."""
    return flat(metrics)


@pytest.mark.slow
def test_mlflow_holds_every_key(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    result = trained(tmp_path, "mlflow", rounds=2)
    trained(tmp_path, "mlflow", rounds=3, resume=str(result.folder))
    client = tracking.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("fedddp")
    (run,) = client.search_runs([experiment.experiment_id])  # a resumed run goes on in its own
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name, value in known(line).items():
            if isinstance(value, str):
                assert run.data.tags[name] == value
                continue
            values = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
            assert values[line["round"]] == pytest.approx(value)
    assert run.data.params["model.hidden"] == "8"
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "config.toml", "metrics.jsonl", "summary.json",
    }  # fmt: skip


def written(path):
    """The records of a file of W&B: LevelDB's log of protocol buffers, read by W&B's own classes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, []
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


@pytest.mark.slow
def test_wandb_holds_every_key_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = trained(tmp_path, "wandb", rounds=2)
    trained(tmp_path, "wandb", rounds=3, resume=str(result.folder))
    files = sorted((result.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # both parts are of one run
    rows = {}
    for file in files:
        for record in written(file):
            if record.WhichOneof("record_type") == "history":
                row = {}
                for item in record.history.item:
                    row["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
                rows[row["round"]] = row
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(rows) == [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        found = rows[line["round"]]
        assert {name: found.get(name) for name in known(line)} == pytest.approx(known(line))
