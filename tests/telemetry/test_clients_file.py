"""clients.csv and environment.txt: what is known of each client, as far as the level of privacy allows, and where."""

import csv
import json
import subprocess

import numpy as np
import pytest
import torch

import fedddp
from fedddp.checkpoints.run_folder import RunFolder
from fedddp.data import Excerpt
from fedddp.data.partition import Partition
from fedddp.data.parts import write
from fedddp.telemetry import ClientsFile, RoundRecord, rewind
from fedddp.types import RoundReport, SummedReport
from tests.helpers.inputs import Kind

OWNERS = Excerpt(np.array([0, 2, 5]), np.array([[3, 0], [1, 4], [0, 2]]), 6)
LEVELS = {
    "example": {"privacy": {"level": "example", "noise_multiplier": 1.0, "delta": 1e-3}},
    "client": {"privacy": {"level": "client", "noise_multiplier": 1.0, "delta": 1e-2, "clip": 1.0}},
}


def record(t, ids, losses, failed=()):
    loss = torch.tensor(losses, dtype=torch.float64)
    return RoundRecord({"round": t}, RoundReport(loss, loss, torch.ones(len(ids)), failed, (), ids=ids), None)


def rows(folder):
    with (folder / "clients.csv").open() as file:
        return list(csv.DictReader(file))


def train(tmp_path, dataset=True, **sections):
    quiet = {"run": {"device": "cpu", "threads": 1, "dir": str(tmp_path / "runs")}, "telemetry": {"progress": "off"}}
    given = {"data": {"partition": {"num_clients": 4}}, "model": {"name": "mlp", "hidden": 2}} | sections
    if dataset:
        given["dataset"] = Kind((4,)).dataset()
    return fedddp.run(quiet, {"telemetry.tensorboard": False}, rounds=2, **given)


def test_of_very_many_classes_fewer_clients_are_listed(tmp_path, monkeypatch):
    """The list has a number for each client and class, and is made before training."""
    monkeypatch.setattr("fedddp.setup.load.MOST_COUNTS", 70 * 3)
    data = Kind((4,)).dataset(classes=3, num_train=200)
    partition = Partition.dealt(np.arange(200), np.full(100, 2))
    keys = {"run.dir": str(tmp_path), "model": {"name": "mlp", "hidden": 2}}
    run = fedddp.assemble(keys, rounds=1, dataset=data, partition=partition)
    run.close()
    assert len(run.prepared.output.owners.clients) == 70


def test_rounds_failures_and_the_last_loss_are_counted_by_client_over_a_resume(tmp_path):
    folder = RunFolder(tmp_path, resumed=False)
    first = ClientsFile(folder, OWNERS)
    first.round(record(1, (0, 2), [0.5, 0.75]))
    first.round(record(2, (0, 3), [torch.nan, 0.1], failed=(0,)))
    first.round(record(3, (5, 2), [9.0, 9.0]))  # not in the checkpoint: trained again
    first.close(None)
    assert not (tmp_path / "clients.csv").exists()
    rewind(folder, 2)
    second = ClientsFile(folder, OWNERS)
    second.round(record(3, (0, 2), [0.25, torch.inf]))
    second.close({})
    table = rows(tmp_path)
    assert [row["client"] for row in table] == ["0", "2", "5"]
    assert [row["examples"] for row in table] == ["3", "5", "2"]
    assert [row["labels"] for row in table] == ["0:3", "0:1 1:4", "1:2"]
    assert [row["rounds"] for row in table] == ["2", "2", "0"]
    assert [row["failures"] for row in table] == ["1", "0", "0"]
    assert [row["loss"] for row in table] == ["0.25", "", ""]


def test_the_files_of_a_run_hold_scores_of_clients_and_where_it_ran(tmp_path):
    result = train(tmp_path, evaluate={"holdout": 0.3, "personal_every": 1}, algorithm="ditto", cohort={"size": 2})
    table, (*_, last) = rows(result.folder), result.history
    personal = [float(row["personal_accuracy"]) for row in table]
    assert sum(personal) / len(personal) == pytest.approx(last["personal_accuracy_mean"])
    assert sum(int(row["rounds"]) for row in table) == 4
    assert [int(row["examples"]) for row in table] == [sum(map(int, counts(row))) for row in table]
    lines = (result.folder / "environment.txt").read_text().splitlines()
    told = dict(line.split(": ", 1) for line in lines)
    assert told["torch"] == torch.__version__
    assert told["ranks"] == "1"
    assert told["threads"] == "1 per rank"


def counts(row):
    return [pair.split(":")[1] for pair in row["labels"].split()]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_where_no_client_may_be_named_only_sizes_are_listed(level, tmp_path):
    result = train(tmp_path, **LEVELS[level])
    assert list(rows(result.folder)[0]) == ["client", "examples"]
    assert not (result.folder / "clients.jsonl").exists()


def test_of_sums_over_clients_none_is_named(tmp_path):
    """As under secure aggregation."""
    file = ClientsFile(RunFolder(tmp_path, resumed=False), OWNERS.without_labels())
    file.round(RoundRecord({"round": 1}, SummedReport((0.5,), 0, 10, 1.0, 0.5), None))
    file.close({})
    assert list(rows(tmp_path)[0]) == ["client", "examples"]
    assert [path.name for path in tmp_path.iterdir()] == ["clients.csv"]


def test_of_divided_data_no_labels_are_listed(tmp_path):
    data = Kind((4,)).dataset()
    n = len(data.train)
    write(tmp_path / "parts", data, Partition.dealt(np.arange(n), np.array([n - 5, 5])), data="mine", table={}, seed=0)
    result = train(tmp_path, dataset=False, data={"name": "parts", "root": str(tmp_path / "parts")})
    assert list(rows(result.folder)[0]) == ["client", "examples", "rounds", "failures", "loss"]
    assert [row["examples"] for row in rows(result.folder)] == [str(n - 5), "5"]


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, logged):
    monkeypatch.setattr(ClientsFile, "_table", lambda _: 1 / 0)
    assert json.loads((train(tmp_path).folder / "status.json").read_text())["state"] == "done"
    assert [line for line in logged if line.startswith("clients.csv: failed (ZeroDivisionError")]


def test_the_commit_of_the_working_folder_and_its_changes_are_told(tmp_path, monkeypatch):
    from fedddp.telemetry.environment import _commit

    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "model.py").write_text("1")
    git("add", "model.py")
    git("commit", "-m", "one")
    monkeypatch.chdir(tmp_path)
    clean = _commit()
    assert len(clean) == 40
    (tmp_path / "model.py").write_text("2")
    assert _commit() == f"{clean}, with uncommitted changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit() == ""
