"""Mistakes of the user: one line that names key, value and remedy, exit code 2, nothing written."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedddp.train import main

CONFIGS = Path(__file__).parents[2] / "configs"

CASES = {
    "unknown key": (["--run.ronds=5"], ["run.ronds", "did you mean 'rounds'?"]),
    "unknown section": (["--clint.batch_size=5"], ["clint", "did you mean 'client'?"]),
    "wrong type": (["--run.rounds=many"], ["run.rounds='many'", "integer"]),
    "negative lr": (["--client.optimizer.lr=-1"], ["client.optimizer.lr=-1", "greater than 0"]),
    "target of 2": (["--evaluate.target_accuracy=2"], ["evaluate.target_accuracy=2", "less than or equal to 1"]),
    "bad TOML": (["broken.toml"], ["broken.toml", "not valid TOML", "line 2"]),
    "no such file": (["none.toml"], ["none.toml", "cannot be read"]),
    "missing data root": (
        ["--data.name=mnist", "--data.root=nowhere", "--data.download=false"],
        ["data.root='nowhere'", "does not exist", "data.download=true"],
    ),
    "missing data root, download allowed": (
        ["--data.name=mnist", "--data.root=nowhere"],
        ["data.root='nowhere'", "does not exist", "make the folder"],
    ),
    "more clients than examples": (
        ["--data.partition.num_clients=10001"],
        ["data.partition.num_clients=10001", "at most 10000"],
    ),
    "cohort above population": (["--cohort.size=3"], ["cohort.size=3", "at most 1"]),
    "nccl without GPU": (["--run.backend=nccl", "--run.device=cpu"], ["run.backend='nccl'", "gloo"]),
    "no such module": (["--model.name=no.such:Net"], ["model.name='no.such:Net'", "PYTHONPATH"]),
    "no such class": (["--model.name=torch.nn:Lineear"], ["torch.nn:Lineear", "did you mean 'Linear'?"]),
    "no such dataset": (["--data.name=mnistt"], ["data.name='mnistt'", "mnist"]),
    "dataset import path": (["--data.name=no.such:Set"], ["data.name='no.such:Set'", "PYTHONPATH"]),
    "dataset arguments": (["--data.name=synthetic", "--data.args.colour=3"], ["data.args", "colour"]),
    "model does not fit": (
        ["--model.name=torch.nn:Linear", "--model.in_features=3", "--model.out_features=10"],
        ["model.name='torch.nn:Linear'", "[2, 1, 28, 28]"],
    ),
    "no run to resume": (["--run.resume=."], ["run.resume='.'", "not a run folder"]),
    "nesterov alone": (["--client.optimizer.nesterov=true"], ["client.optimizer", "momentum above 0"]),
    "examples with several owners": (
        [
            *("--privacy.level=example", "--privacy.noise_multiplier=1"),
            *("--data.partition.name=overlapping", "--data.partition.num_clients=200"),
        ],
        ["data.partition.num_clients", "examples in common"],
    ),
    "unknown option": (["--verbose"], ["--verbose", "--section.key=value"]),
    "key without value": (["--run.rounds"], ["--run.rounds", "has no value"]),
}

SMALL = ["--data.name=synthetic", "--data.args={num_train=200, num_test=20}", "--model.name=mlp", "--model.hidden=8"]
SMALL += ["--telemetry.tensorboard=false"]


def test_a_budget_below_the_first_round_is_said(capsys):
    words = ["--privacy.level=example", "--privacy.noise_multiplier=1", "--privacy.target_epsilon=0.01"]
    assert main([*SMALL, "--telemetry.progress=off", *words]) == 1
    assert "privacy.target_epsilon: is less than the first round" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[run]\nrounds = = 3\n")


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(case, capsys):
    words, expected = CASES[case]
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("fedddp: ")
    assert told.err.count("\n") == 1
    for part in expected:
        assert part in told.err
    assert [p.name for p in Path().iterdir()] == ["broken.toml"]  # nothing was started


def test_the_process_exits_with_2():
    result = subprocess.run(
        [sys.executable, "-m", "fedddp.train", "--run.rounds=0"], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "fedddp: run.rounds=0: should be greater than or equal to 1\n"


def test_help_and_print_config_exit_with_0(capsys):
    assert main(["--help"]) == 0
    assert "--client.optimizer.lr" in capsys.readouterr().out
    assert main([str(CONFIGS / "mnist" / "fedavg.toml"), "--run.rounds=3", "--print-config=all"]) == 0
    shown = capsys.readouterr().out
    assert "rounds = 3" in shown
    assert 'name = "fedavg-mnist-cnn"' in shown


@pytest.mark.parametrize(
    ("how", "reason"), [("nan", "its update is not finite"), ("raise", "this client's disk is full")]
)
def test_a_run_in_which_all_clients_fail_ends_after_the_first_round(how, reason, capsys):
    faulty = ["--algorithm.name=faulty:Faulty", f"--algorithm.how={how}", "--algorithm.client=-1"]
    assert main([*SMALL, *faulty, "--run.rounds=20", "--data.partition.num_clients=100"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedddp: ") and reason in line]
    assert [line[:40] for line in told] == [
        "fedddp: round 1: 100 clients failed; their updates are ignored"[:40],
        "fedddp: every client failed in every round"[:40],
    ]
    status = json.loads(Path("runs/faulty-Faulty-synthetic-mlp/status.json").read_text())
    assert status["state"] == "failed"
    assert reason in status["error"]


def test_some_failures_are_in_the_summary_by_reason(capsys):
    faulty = ["--algorithm.name=faulty:Faulty", "--algorithm.client=1", "--data.partition.num_clients=3"]
    assert main([*SMALL, *faulty, "--run.rounds=3"]) == 0
    summary = json.loads(Path("runs/faulty-Faulty-synthetic-mlp/summary.json").read_text())
    assert summary["failures"] == {"RuntimeError: this client's disk is full": 3}
    assert "3 x RuntimeError: this client's disk is full" in capsys.readouterr().out


def test_a_mistake_of_one_rank_alone_is_said_by_it_after_those_who_come_first(capsys, monkeypatch):
    waited = []
    monkeypatch.setattr("fedddp.cli.outcome.time", SimpleNamespace(sleep=waited.append))  # threads sleep, too
    for rank, local_rank in (("0", "0"), ("2", "0"), ("1", "1")):
        where = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
        for key, value in where.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr("fedddp.cli.outcome.leave", lambda code: None)
        waited.clear()
        assert main(["--run.ronds=5"]) == 2
        assert "run.ronds" in capsys.readouterr().err
        assert sum(waited) == pytest.approx({"0": 0, "2": 4, "1": 6}[rank])


TINY = ["--data.name=synthetic", "--data.args={num_train=60, num_test=10, shape=[1, 4, 4]}", "--model.name=logistic"]
EXITS = {
    "a model's constructor": (["--model.name=quitting:InConstructor"], "model.name='quitting:InConstructor': ", 2),
    "a model's forward": (["--model.name=quitting:InForward"], "model.name='quitting:InForward': ", 2),
    "a dataset's constructor": (["--data.name=quitting:InDataset", "--data.args={}"], "data.name='quitting:InD", 2),
    "a module": (["--model.name=quitting_import:Net"], "model.name='quitting_import:Net': ", 2),
    "a client": (["--algorithm.name=quitting:OnClient"], "every client failed in every round", 1),
    "the server": (["--algorithm.name=quitting:OnServer"], "quitting.py:", 1),
}


@pytest.mark.parametrize("where", EXITS)
def test_sys_exit_in_a_users_code_does_not_end_the_program_without_a_word(where, capsys):
    words, said, code = EXITS[where]
    assert main([*TINY, "--telemetry.tensorboard=false", "--telemetry.progress=off", *words]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fedddp: ")
    assert said in last
    assert "SystemExit" in last
    if code == 1:
        status = json.loads(next(Path("runs").glob("*/status.json")).read_text())
        assert status["state"] == "failed"
