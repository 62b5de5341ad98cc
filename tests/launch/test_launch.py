"""fedddp launch: ranks without torchrun's noise, its exit codes, and what is the last line on the screen."""

import json
import os
import signal
import sys

import pytest

from fedddp.cli.main import main
from tests.helpers.waiting import until

SMALL = [
    *("--data.name=synthetic", "--data.args={num_train=240, num_test=60}", "--telemetry.tensorboard=false"),
    *("--run.device=cpu", "--run.threads=1", "--run.name=trial"),
]
MLP = ["--model.name=mlp", "--model.hidden=16"]
NOISE = ("torch.distributed.elastic", "Root Cause", "Traceback", "=====", "Sending process", "W1", "E1")


@pytest.fixture
def launch(program):
    def start(*words: str):
        return program([sys.executable, "-m", "fedddp", "launch", *words], {**os.environ, "OMP_NUM_THREADS": "1"})

    return start


def ended(process, code):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    assert not any(line.startswith(NOISE) for line in output.splitlines()), output
    return output.splitlines()


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_ranks_train_together_and_a_killed_one_is_named(launch, tmp_path):
    output = ended(launch("-n", "2", *SMALL, *MLP, "--rounds=2"), 0)
    assert sum("--rounds stands for --run.rounds" in line for line in output) == 1
    assert json.loads((tmp_path / "runs" / "trial" / "summary.json").read_text())["world_size"] == 2
    kill = ["--algorithm.name=faulty:Faulty", "--algorithm.how=kill", "--algorithm.client=1"]
    output = ended(launch("-n", "2", *SMALL, *MLP, *kill), 1)
    assert output[-1] == "fedddp: rank 1 was ended by SIGKILL; the other ranks were stopped"


def test_a_mistake_that_the_ranks_find_is_the_last_line(launch, tmp_path):
    output = ended(launch("-n", "2", *SMALL, *MLP, "--data.partition.num_clients=1000"), 2)
    assert output[-1].startswith("fedddp[rank 0]: data.partition.num_clients=1000: ")
    assert sum("num_clients=1000" in line for line in output) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_forwarded_and_the_run_goes_on(launch, tmp_path):
    run = tmp_path / "runs" / "trial"
    faulty = ["--algorithm.name=faulty:Faulty", "--algorithm.how=work", "--algorithm.client=1", "--algorithm.round=3"]
    words = ["-n", "2", *SMALL, *MLP, *faulty, "--algorithm.once=reached", "--run.rounds=5"]
    process = launch(*words)
    until((tmp_path / "reached").exists, program=process)
    process.send_signal(signal.SIGINT)
    output = ended(process, 75)
    assert output[-1] == "fedddp: SIGINT: stopped"
    assert (status(run)["state"], status(run)["round"]) == ("interrupted", 2)
    ended(launch(*words, "--run.resume=auto"), 0)
    assert (status(run)["state"], status(run)["round"]) == ("done", 5)


def test_two_machines_meet_at_the_master(launch, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("-n", "1", "--nnodes=2", f"--master=127.0.0.1:{port}")
    machines = [launch(*where, f"--node-rank={number}", *SMALL, *MLP, "--run.rounds=1") for number in (0, 1)]
    for process in machines:
        ended(process, 0)
    summary = json.loads((tmp_path / "runs" / "trial" / "summary.json").read_text())
    assert (summary["world_size"], summary["rounds"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "2", "--run.ronds=5"], "run.ronds: unknown key"),
        (["-n", "0"], "fedddp launch: argument -n/--ranks: '0' should be a whole number of at least 1"),
        (["--nnodes=2"], "--nnodes=2: several machines need --master"),
        (["--node-rank=1"], "--node-rank=1: machines are 0 to 0"),
        (["--nnodes=2", "--master=a:1", "--max-restarts=1"], "--max-restarts=1: works on one machine"),
    ],
)
def test_a_mistake_on_the_command_line_starts_nothing(words, expected, monkeypatch, capsys):
    monkeypatch.setattr("fedddp.cli.launch.launch", lambda *_: pytest.fail("ranks were started"))
    assert main(["launch", *words]) == 2
    assert capsys.readouterr().err.startswith(f"fedddp: {expected}")


def test_the_configuration_is_that_of_all_ranks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for ranks in (["-n", "3"], ["--ranks=3"], ["--nproc_per_node=3"]):
        assert main(["launch", *ranks, "--model=mlp", "--print-config=all"]) == 0
        assert "num_clients = 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failed", "code"), [({}, 0), ({1: 1, 0: -15}, 1), ({2: 2, 0: 75}, 2), ({0: -15, 1: 2}, 2), ({1: 75, 0: -15}, 75)]
)
def test_the_exit_code_is_that_of_the_rank_that_knows_why(failed, code, monkeypatch):
    monkeypatch.setattr("fedddp.cli.launch.launch", lambda *_: failed)
    assert main(["launch", "-n", "3"]) == code
