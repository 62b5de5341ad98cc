"""fedddp launch: ranks without torchrun's noise, its exit codes, and what is the last line on the screen."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedddp.cli.main import main
from fedddp.comm.launcher import Failure
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
    ("codes", "code"), [({}, 0), ({1: 1, 0: -15}, 1), ({2: 2, 0: 75}, 2), ({0: -15, 1: 2}, 2), ({1: 75, 0: -15}, 75)]
)
def test_the_exit_code_is_that_of_the_rank_that_knows_why(codes, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    failed = {rank: Failure(number) for rank, number in codes.items()}
    monkeypatch.setattr("fedddp.cli.launch.launch", lambda *_: failed)
    assert main(["launch", "-n", "3"]) == code


@pytest.mark.parametrize(
    ("reason", "state", "code"), [("SIGHUP", "interrupted", 75), ("SIGTERM: from here", "failed", 1)]
)
def test_a_rank_may_end_before_the_one_that_was_asked_to_stop(tmp_path, monkeypatch, reason, state, code):
    """Rank 0 has written that it was asked, not by this launcher, and still ends when rank 1 has failed without it."""

    def started(module, words, machines):
        run = tmp_path / "runs" / "trial"
        run.mkdir(parents=True)
        (run / "launch").write_text(machines.id)
        (run / "status.json").write_text(json.dumps({"state": "interrupted", "reason": reason, "round": 2}))
        return {1: Failure(1), 0: Failure(75)}

    monkeypatch.setattr("fedddp.cli.launch.launch", started)
    assert main(["launch", "-n", "2", *SMALL, *MLP, f"--run.dir={tmp_path / 'runs'}"]) == code
    assert status(tmp_path / "runs" / "trial")["state"] == state


@pytest.mark.parametrize(
    ("fault", "state", "cause"),
    [
        ("kill@round=3,rank=0", "failed", "rank 0 was ended by SIGKILL"),
        ("abort@round=3,rank=0", "failed", "rank 0 was ended by SIGABRT"),
        ("hang@round=3,rank=0", "failed", "rank 0 is missing, last seen in "),
        ("raise@round=3,rank=1", "failed", "rank 1 "),  # is missing, or failed: whichever rank 0 learns first
        ("hup@round=3,rank=0", "interrupted", "SIGHUP"),
    ],
)
def test_the_status_says_how_a_run_ended_and_why(launch, tmp_path, monkeypatch, fault, state, cause):
    monkeypatch.setenv("FEDDDP_FAULT", fault)
    process = launch("-n", "2", *SMALL, *MLP, "--run.rounds=5", "--run.timeout=6")
    output, _ = process.communicate(timeout=120)
    told = status(tmp_path / "runs" / "trial")
    assert told["state"] == state, output
    assert cause in (told.get("error") or told.get("reason")), output
    assert "NONE" not in str(told)
    assert process.returncode == (75 if "hup" in fault else 1), output
    saved = os.listdir(tmp_path / "runs" / "trial" / "checkpoints")
    assert "round-000001" in saved if fault.startswith(("kill", "abort")) else "round-000002" in saved, output


def test_the_warning_of_a_time_limit_is_a_request_to_stop(launch, tmp_path):
    process = launch("-n", "2", *SMALL, *MLP, "--run.rounds=100000")
    until(lambda: (tmp_path / "runs" / "trial" / "metrics.jsonl").exists(), program=process)
    process.send_signal(signal.SIGUSR1)
    ended(process, 75)
    told = status(tmp_path / "runs" / "trial")
    assert (told["state"], told["reason"]) == ("interrupted", "SIGUSR1")


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_ranks_whose_launcher_is_killed_while_they_import_torch_are_gone(launch, tmp_path):
    process = launch("-n", "2", *SMALL, *MLP, "--run.rounds=100000")
    until(lambda: len(ranks := children(process.pid)) == 2 and all(map(tied, ranks)), program=process)
    ranks = children(process.pid)
    assert not any("torch" in Path(f"/proc/{rank}/maps").read_text() for rank in ranks), "too late to show it"
    process.kill()
    until(lambda: not any(map(alive, ranks)), seconds=3)


def tied(pid):
    """Whether a rank has begun: the kernel's death signal is set by the first import, which needs ctypes."""
    return "_ctypes" in Path(f"/proc/{pid}/maps").read_text()


def test_a_rank_whose_launcher_died_before_it_began_does_not_train():
    env = {**os.environ, "TORCHELASTIC_RUN_ID": "x", "FEDDDP_LAUNCHER": "1"}
    begun = subprocess.run([sys.executable, "-m", "fedddp.train"], env=env, capture_output=True, text=True, timeout=20)
    assert begun.returncode == 1
    assert begun.stderr == "fedddp: the launcher died before this rank began: stopped\n"


def test_what_a_rank_refuses_is_the_only_line_while_others_wait_for_its_store(launch, tmp_path):
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    (tmp_path / "runs" / "trial" / "config.toml").write_text('[run]\nname = "trial"\n')
    (tmp_path / "runs" / "trial" / "status.json").write_text('{"state": "done"}')
    with (tmp_path / "runs" / "trial" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = ended(launch("-n", "2", *SMALL, *MLP, "--run.resume=auto"), 2)
    assert [line for line in output if "Exception raised" in line or "frame #" in line] == []
    assert output[-1].startswith("fedddp[rank 0]: run.resume='auto': runs/trial is being written by another process")
    assert len(output) == 1


def test_a_rank_that_is_stopped_is_ended_and_named(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDDDP_FAULT", "stop@round=3,rank=1")
    process = launch("-n", "2", *SMALL, *MLP, "--run.rounds=5", "--run.timeout=3")
    output = ended(process, 1)
    assert any(line.endswith(", a rank, is stopped (SIGSTOP) and cannot end: it is killed") for line in output)
    told = status(tmp_path / "runs" / "trial")
    assert told["state"] == "failed"
    assert "rank 1 is missing, last seen in " in told["error"]
