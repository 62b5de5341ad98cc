"""The real program under the real torchrun: faults that only show there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.waiting import until

SMALL = [
    "--data.name=synthetic",
    "--data.args={num_train=240, num_test=60}",
    "--model.name=mlp",
    "--model.hidden=16",
    "--telemetry.tensorboard=false",
    "--run.device=cpu",
    "--run.threads=1",
]


def working(client: int, round: int, once: Path) -> list[str]:
    """Words for a run in which a client works without end in a round, the first time that it comes there."""
    faulty = ("--algorithm.name=faulty:Faulty", "--algorithm.how=work", f"--algorithm.client={client}")
    return [*SMALL, *faulty, f"--algorithm.round={round}", f"--algorithm.once={once}"]


def command(ranks: int, *args: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    options = [a for a in args if a.startswith("--max-restarts")]
    return [*launcher, *options, "-m", "fedddp.train", *(a for a in args if a not in options)]


@pytest.fixture
def start(program: Callable[..., subprocess.Popen[str]]):
    """start(ranks, *args, **environment) starts torchrun in tmp_path; 0 ranks: plain Python."""
    base = {**os.environ, "OMP_NUM_THREADS": "1"}
    base.pop("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", None)

    def run(ranks: int, *args: str, **environment: str) -> subprocess.Popen[str]:
        words = command(ranks, *args) if ranks else [sys.executable, "-m", "fedddp.train", *args]
        return program(words, base | environment)

    return run


def _workers(launcher: int) -> list[int]:
    """The living children of torchrun; they have sessions of their own."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"fedddp.train" in _cmdline(int(pid))]


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _rounds(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def _status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def test_no_argument_shows_rounds_a_table_and_the_tensorboard_command(start):
    output = _finish(start(2, *SMALL, "--run.rounds=2"))
    assert "round 1/2  test accuracy" in output
    assert "final test accuracy" in output
    assert "tensorboard --logdir runs" in output  # by its path where the environment is not activated


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_loses_nothing_and_the_run_goes_on_to_the_same_model(start, tmp_path, number):
    run, reached = tmp_path / "runs" / "cut", tmp_path / "reached"
    words = [*working(1, 3, reached), "--run.rounds=4"]
    process = start(2, *words, "--run.name=cut")
    until(lambda: reached.exists() and _rounds(run) == 2, program=process)
    workers = _workers(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "SIGKILL" not in output  # by which torchrun ends, after 30 s, ranks that do not end by themselves
    assert not any(map(_cmdline, workers))
    assert (_status(run)["state"], _status(run)["round"]) == ("interrupted", 2)
    assert (run / "checkpoints" / "round-000002").is_dir()

    _finish(start(2, *words, "--run.name=cut", "--run.resume=auto"))
    assert _status(run)["state"] == "done"
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    _finish(start(2, *words, "--run.name=whole"))
    assert _summary(run)["model_sha256"] == _summary(tmp_path / "runs" / "whole")["model_sha256"]


def test_one_rank_exits_75_when_interrupted(start, tmp_path):
    process = start(0, *working(0, 2, tmp_path / "reached"))
    until((tmp_path / "reached").exists, program=process)
    process.send_signal(signal.SIGINT)
    assert "--run.resume=auto" in _finish(process, code=75)


@pytest.mark.parametrize("store", ["the agent's", "rank 0's"])
def test_kill_9_of_a_rank_and_a_restart_end_with_the_undisturbed_model(start, tmp_path, store):
    """With the store of plain torchrun, which outlives an attempt, and with that of the scripts in launch/."""
    environment = {} if store == "the agent's" else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    faulty = ["--algorithm.name=faulty:Faulty", "--algorithm.how=kill", "--algorithm.round=3", "--run.rounds=5"]
    marker = tmp_path / "killed"
    undisturbed = [*faulty[:1], "--algorithm.client=7", f"--algorithm.once={marker}", *faulty[1:], *SMALL]
    _finish(start(2, *undisturbed, "--run.name=whole"))
    args = [*faulty[:1], "--algorithm.client=1", f"--algorithm.once={marker}", *faulty[1:], *SMALL]
    output = _finish(start(2, "--max-restarts=1", *args, "--run.name=killed", **environment))
    assert marker.exists(), output
    run = tmp_path / "runs" / "killed"
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert _summary(run)["model_sha256"] == _summary(tmp_path / "runs" / "whole")["model_sha256"]


@pytest.mark.parametrize("how", ["hang", "exit"])
def test_a_rank_that_hangs_or_leaves_is_named_and_nobody_stays(start, how):
    args = ["--algorithm.name=faulty:Faulty", f"--algorithm.how={how}", "--algorithm.client=1", "--algorithm.round=2"]
    output = _finish(start(3, *args, *SMALL, "--run.timeout=3"), code=1)
    assert "aggregate: " in output
    assert "rank 1 is missing, last seen in 'train in round 2'" in output
    assert "SIGKILL" not in output  # by which torchrun alone would end, after 30 s, the one that hangs


def test_sigkill_to_torchrun_leaves_no_orphan(start, tmp_path):
    process = start(2, *working(1, 2, tmp_path / "reached"), "--run.name=orphan")
    until((tmp_path / "reached").exists, program=process)
    workers = _workers(process.pid)
    assert len(workers) == 2
    process.kill()
    until(lambda: not any(map(_cmdline, workers)))
    assert _status(tmp_path / "runs" / "orphan")["state"] == "interrupted"


def test_a_usage_error_is_one_line_from_one_rank(start):
    output = _finish(start(3, *SMALL, "--client.optimizer.lr=-1"), code=1)
    assert output.count("client.optimizer.lr=-1: should be greater than 0") == 1
    assert "exitcode  : 2" in output
