"""fedddp launch --min-ranks: the run goes on without the ranks that were lost, and its model is the undisturbed one."""

import json
import os
import sys
from dataclasses import replace

import pytest

import fedddp
from fedddp.cli.main import main
from fedddp.comm import Place
from fedddp.config import build
from fedddp.config.words import parse
from fedddp.errors import UsageError
from fedddp.sampling import Punctual
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

DATA = ["--data.name=synthetic", "--data.args={num_train=240, num_test=60}", "--data.partition.num_clients=6"]
SMALL = [
    *("--model.name=mlp", "--model.hidden=16", "--aggregation.sum=exact", "--client.optimizer.lr=0.05"),
    *("--telemetry.tensorboard=false", "--run.device=cpu", "--run.threads=1", "--run.rounds=6", "--run.name=trial"),
]


SECURE = ["--privacy.secure_aggregation.enabled=true"]


@pytest.fixture
def launch(program):
    def start(*words: str, faults: str, data=DATA):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "FEDDDP_FAULT": faults}
        return program([sys.executable, "-m", "fedddp", "launch", "-n", "3", *data, *SMALL, *words], env)

    return start


def finished(process, folder):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 7))
    assert [line["participants"] for line in lines] == [6] * 6
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    return json.loads((folder / "summary.json").read_text()), output


def undisturbed(folder, *words):
    table = parse([*DATA, *SMALL, *words, f"--run.dir={folder}", "--telemetry.progress=off"]).overrides
    return fedddp.run(table).summary["model_sha256"]


@pytest.mark.slow
def test_ranks_are_killed_rank_0_among_them(launch, tmp_path):
    """Rank 1 before the sum of round 2; rank 0 after the sum of round 4, which the last one has made then, too."""
    words = ("--algorithm.server_optimizer.momentum=0.5", "--evaluate.every=2", "--checkpoint.every=100")
    faults = "kill@round=2,rank=1,point=before aggregate; kill@round=4,rank=0,point=after aggregate,attempt=1"
    summary, output = finished(launch("--min-ranks=1", *words, faults=faults), tmp_path / "runs" / "trial")
    assert (summary["world_size"], summary["failures"]) == (1, {})
    assert "rank 1 was ended by SIGKILL; the run goes on with rank(s) 0, 2" in output
    assert "rank 0 was ended by SIGKILL; the run goes on with rank(s) 2" in output
    assert "ended without writing why" not in output
    assert summary["model_sha256"] == undisturbed(tmp_path / "alone", *words)


@pytest.mark.slow
def test_a_stopped_rank_is_ended_and_joins_again_with_what_clients_remember(launch, tmp_path):
    words = ("--algorithm.name=scaffold", "--run.timeout=5")
    faults = "stop@round=3,rank=0,point=before aggregate"
    process = launch("--min-ranks=3", "--max-restarts=1", *words, faults=faults)
    summary, output = finished(process, tmp_path / "runs" / "trial")
    assert summary["world_size"] == 3
    assert "rank 0 made no progress for 5 s (run.timeout) and is ended" in output
    assert "rank 0 was started again and joins" in output
    assert "fedddp launch -n 3 --max-restarts=1 --min-ranks=3 --run.resume=" in output  # what goes on with it
    assert summary["model_sha256"] == undisturbed(tmp_path / "alone", *words)


def replayed(folder, log, *words):
    """The model that one process makes of a commit log: in each round it trains the clients that are in it."""
    p = fedddp.assemble(parse([*SMALL, *words, f"--run.dir={folder}", "--telemetry.progress=off"]).overrides)
    clients = {line["round"]: {int(k) for k in line["clients"]} for line in log}
    sampler = Punctual(p.federation.sampler, lambda k, t: k not in clients[t + 1])
    p = replace(p, federation=replace(p.federation, sampler=sampler))
    return p.train()[1]["model_sha256"]


@pytest.mark.slow
def test_without_a_ranks_data_the_run_goes_on_with_the_other_clients(launch, tmp_path):
    """Divided data: clients 1 and 4 live on rank 1, which is killed in round 3. The commit log says who was in each."""
    assert main(["split", f"--out={tmp_path / 'parts'}", *DATA]) == 0
    divided = ["--data.name=parts", f"--data.root={tmp_path / 'parts'}"]
    process = launch("--min-ranks=2", faults="kill@round=3,rank=1,point=after aggregate", data=divided)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "trial"
    log = [json.loads(line) for line in (run / "commits.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["ranks"]) for line in log] == [(0, [0, 1, 2])] * 2 + [(1, [0, 2])] * 4
    assert [sorted(line["clients"]) for line in log] == [list("012345")] * 2 + [list("0235")] * 4
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model_sha256"] == replayed(tmp_path / "alone", log, *divided)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "2", "--min-ranks=3"], "--min-ranks=3: there are 2 ranks; use at most 2"),
        (["--nnodes=2", "--master=a:1", "--min-ranks=1"], "--min-ranks=1: works on one machine"),
        (["--min-ranks=0"], "fedddp launch: argument --min-ranks: '0' should be a whole number of at least 1"),
    ],
)
def test_a_mistake_starts_nothing(words, expected, capsys, monkeypatch):
    monkeypatch.setattr("fedddp.cli.launch.Coordinator", lambda *_, **__: pytest.fail("ranks were started"))
    assert main(["launch", *words]) == 2
    assert capsys.readouterr().err.startswith(f"fedddp: {expected}")


@pytest.mark.parametrize(
    ("code", "front", "words"),
    [
        ("survivors-nccl", "run.backend='nccl': ", ["--run.backend=nccl"]),
        ("survivors-private", "privacy.level='example': ", ["--privacy.level=example", "--privacy.clip=1"]),
        ("survivors-secure", "privacy.secure_aggregation.enabled=true: ", SECURE),
        ("survivors-checkpoints", "checkpoint.every=0: ", ["--checkpoint.every=0"]),
        ("survivors-own-clients", "checkpoint.clients_dir='own': ", ["--checkpoint.clients_dir=own"]),
    ],
)
def test_what_does_not_fit_is_refused_before_a_rank_starts(code, front, words, capsys, monkeypatch):
    monkeypatch.setattr("fedddp.cli.launch.Coordinator", lambda *_, **__: pytest.fail("ranks were started"))
    assert main(["launch", "-n", "3", "--min-ranks=2", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedddp: {front}"), code


def test_what_a_lost_rank_would_take_along_is_refused_for_divided_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedddp.cli.launch.Coordinator", lambda *_, **__: pytest.fail("ranks were started"))
    assert main(["split", f"--out={tmp_path / 'parts'}", *DATA]) == 0
    words = [*SMALL, "--data.name=parts", f"--data.root={tmp_path / 'parts'}"]
    held = ["--evaluate.holdout=0.2", "--evaluate.personal_every=1"]
    assert main(["launch", "-n", "3", "--min-ranks=2", *words, *held]) == 2
    assert "evaluate.personal_every=1: a lost rank takes" in capsys.readouterr().err, "survivors-personal"
    place = Place(0, 3, 0, 3, coordinated=True, started=3, numbers=(0, 1, 2))
    for remembers in ("--algorithm.name=scaffold", "--aggregation.compression.name=top_k"):
        table = parse([*words[:3], *words[4:], remembers]).overrides
        with pytest.raises(UsageError) as caught:
            prepare(resolve(build(table), place), place)
        assert caught.value.code == "survivors-states"
