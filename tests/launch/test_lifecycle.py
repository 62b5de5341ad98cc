"""How runs begin, go on and end: what status.json and the terminal say of it."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedddp.comm import CommError
from fedddp.train import main
from tests.helpers.waiting import until

SMALL = [
    *("--run.name=trial", "--run.threads=1", "--run.device=cpu", "--telemetry.tensorboard=false"),
    *("--data.name=synthetic", "--data.args={num_train=60, num_test=20}", "--model.name=mlp", "--model.hidden=8"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def status(name="trial"):
    return json.loads(Path(f"runs/{name}/status.json").read_text())


def lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedddp: ")]


@pytest.mark.parametrize("what", ["Evaluator", "Schedule", "Files", "_restored"])
def test_a_run_that_fails_before_its_first_round_says_so_in_its_status(what, monkeypatch, capsys):
    def fail(*args, **more):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(f"fedddp.setup.assemble.{what}", fail)
    assert main(SMALL) == 1
    assert (status()["state"], status()["error"]) == ("failed", "RuntimeError: no such luck")


def test_a_resumed_run_whose_ranks_do_not_connect_says_so_in_its_status(monkeypatch, capsys):
    assert main([*SMALL, "--run.rounds=1"]) == 0
    assert status()["state"] == "done"

    def fail(*args, **more):
        raise CommError("rank 1 did not come")

    monkeypatch.setattr("fedddp.comm.Comm.connect", fail)
    assert main([*SMALL, "--run.rounds=2", "--run.resume=auto"]) == 1
    assert (status()["state"], status()["round"]) == ("failed", 1)
    assert lines(capsys)[-1] == "fedddp: rank 1 did not come"


def test_a_run_that_fails_at_its_very_end_says_so_in_its_status(monkeypatch, capsys):
    def fail(*args, **more):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("fedddp.setup.experiment.Experiment.summary", fail)
    assert main([*SMALL, "--run.rounds=1"]) == 1
    assert (status()["state"], status()["error"]) == ("failed", "RuntimeError: no such luck")


@pytest.mark.parametrize(("kilobytes", "pages"), [(24, "false"), (40, "false"), (40, "true")])
def test_without_space_for_a_checkpoint_a_run_ends_in_one_line(kilobytes, pages):
    """A limit on the size of a file stands in for a full disk; the model has 25 kB."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, 1024 * kilobytes))

    words = [sys.executable, "-m", "fedddp.train", *SMALL, "--run.rounds=400", "--checkpoint.every=2"]
    words.append(f"--telemetry.tensorboard={pages}")
    ended = subprocess.run(words, capture_output=True, text=True, preexec_fn=limited)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    what = "the checkpoint of round 2" if kilobytes == 24 else "the metrics of round"
    assert line.startswith(f"fedddp: no space left for {what}")
    assert line.endswith("--run.resume=auto")
    assert status()["state"] == "failed"
    assert "no space left" in status()["error"]


def test_a_second_run_of_a_folder_is_refused_until_the_first_is_gone(program, tmp_path, capsys):
    words = [*SMALL, "--run.resume=auto", "--run.rounds=100000", "--data.partition.num_clients=30", "--model.hidden=9"]
    first = program([sys.executable, "-m", "fedddp.train", *words], os.environ)
    until(lambda: list(Path("runs/trial").glob("checkpoints/round-*")), program=first)  # the first are soon removed
    for resume in ("auto", "runs/trial"):
        assert main([*words, f"--run.resume={resume}"]) == 2
        (line,) = lines(capsys)
        assert line.startswith(f"fedddp: run.resume={resume!r}: runs/trial is being written by process {first.pid} on ")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert status()["state"] == "running"
    done = status()["round"]
    assert main([*words, f"--run.rounds={done + 2}"]) == 0
    (line,) = [line for line in lines(capsys) if "ended without writing why" in line]
    assert line.startswith(f"fedddp: runs/trial: process {first.pid} ended without writing why")
    assert status()["state"] == "done"
    assert [path.name for path in Path("runs").iterdir()] == ["trial"]


def test_a_resumed_run_says_where_it_goes_on_and_a_finished_one_that_it_is_done(capsys):
    words = [*SMALL, "--run.resume=auto"]
    assert main([*words, "--run.rounds=2"]) == 0
    assert not [line for line in lines(capsys) if "resuming" in line or "done" in line]
    assert main([*words, "--run.rounds=4"]) == 0
    assert "fedddp: resuming runs/trial at round 3 of 4" in lines(capsys)
    for rounds, told in ((4, "4 of 4 rounds"), (3, "4 of 3 rounds")):
        assert main([*words, f"--run.rounds={rounds}"]) == 0
        said = f"fedddp: runs/trial is done: {told} are trained; set a larger run.rounds to train on"
        assert said in lines(capsys)
    assert main([*words, "--run.rounds=9", "--evaluate.target_accuracy=0.01"]) == 0
    (line,) = [line for line in lines(capsys) if "evaluate.target_accuracy" in line]
    assert line.startswith("fedddp: runs/trial is done: round 4 reached")


@pytest.mark.parametrize("error", [RuntimeError("no such luck"), CommError("rank 1 is missing")])
def test_a_run_that_fails_keeps_its_last_finished_round(error, monkeypatch, capsys):
    def fail(comm, phase):
        if phase == "train in round 4":
            raise error

    monkeypatch.setattr("fedddp.comm.Comm.enter", fail)
    assert main([*SMALL, "--run.rounds=5", "--checkpoint.every=0"]) == 1
    assert (status()["state"], status()["round"]) == ("failed", 3)
    assert str(error) in status()["error"]
    assert [path.name for path in Path("runs/trial/checkpoints").iterdir()] == ["round-000003"]
