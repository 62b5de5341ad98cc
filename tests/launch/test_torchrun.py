"""The real program under the real torchrun: faults that only show there."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedddp.cli.commands import COMMANDS
from fedddp.config.words import parse
from tests.helpers import ranks
from tests.helpers.distributed import train
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


def faulty(how: str, **keys: object) -> list[str]:
    """SMALL with a client that fails; see `Faulty`."""
    words = (f"--algorithm.{key}={value}" for key, value in keys.items())
    return [*SMALL, "--algorithm.name=faulty:Faulty", f"--algorithm.how={how}", *words]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the model after five rounds of SMALL on two ranks that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = parse([*SMALL, "--run.rounds=5", f"--run.dir={folder}", "--telemetry.progress=off"])
    return ranks.run(folder, train, 2, words.overrides)[0]["sha256"]


def command(num_ranks: int, *args: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
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
    assert "fedddp tensorboard runs" in output  # by its path where the environment is not activated


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_loses_nothing_and_the_run_goes_on_to_the_same_model(start, tmp_path, undisturbed, number):
    run, reached = tmp_path / "runs" / "cut", tmp_path / "reached"
    words = [*faulty("work", client=1, round=3, once=reached), "--run.rounds=5"]
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
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert _summary(run)["model_sha256"] == undisturbed


def test_one_rank_exits_75_when_interrupted(start, tmp_path):
    reached = tmp_path / "reached"
    process = start(0, *faulty("work", client=0, round=2, once=reached))
    until(reached.exists, program=process)
    process.send_signal(signal.SIGINT)
    output = _finish(process, code=75)
    assert "--run.resume=auto" in output
    (resume,) = [line.removeprefix("resume: ") for line in output.splitlines() if line.startswith("resume: ")]
    again = subprocess.run(resume, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert _status(folder)["state"] == "done"


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_commands_that_a_run_prints_at_its_end_work(start, tmp_path, ranks):
    """Those of other commands are printed once these exist."""
    name = ["--run.name=a b", "--run.rounds=2"]  # a space is quoted
    output = _finish(start(ranks, *SMALL, *name))
    folder = tmp_path / "runs" / "a-b"
    commands = output.partition("next:\n")[2].splitlines()
    expected = ["launch" if ranks else "train", *(c for c in ("plot", "report", "export") if c in COMMANDS)]
    assert [shlex.split(line)[1] for line in commands] == expected
    for line in commands:
        done = subprocess.run(line.strip(), shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (line, done.stderr)
    assert _summary(folder)["rounds"] == 4
    assert _summary(folder)["world_size"] == max(1, ranks)
    assert (folder / "curves.png").is_file()


def test_a_run_that_reached_its_target_goes_on_with_the_command_it_prints(start, tmp_path):
    output = _finish(start(0, *SMALL, "--run.rounds=3", "--run.name=t", "--evaluate.target_accuracy=0.05"))
    first = output.partition("next:\n")[2].splitlines()[0].strip()
    assert _summary(tmp_path / "runs" / "t")["rounds"] == 1
    subprocess.run(first, shell=True, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert _summary(tmp_path / "runs" / "t")["rounds"] == 6


@pytest.mark.parametrize("store", ["the agent's", "rank 0's"])
def test_kill_9_of_a_rank_and_a_restart_end_with_the_undisturbed_model(start, tmp_path, undisturbed, store):
    """With the store of plain torchrun, which outlives an attempt, and with that of the scripts in launch/."""
    environment = {} if store == "the agent's" else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    marker, run = tmp_path / "killed", tmp_path / "runs" / "killed"
    words = [*faulty("kill", client=1, round=3, once=marker), "--run.rounds=5", "--run.name=killed"]
    output = _finish(start(2, "--max-restarts=1", *words, **environment))
    assert marker.exists(), output
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert _summary(run)["model_sha256"] == undisturbed


@pytest.mark.parametrize("how", ["hang", "exit"])
def test_a_rank_that_hangs_or_leaves_is_named_and_nobody_stays(start, how):
    output = _finish(start(3, *faulty(how, client=1, round=2), "--run.timeout=3"), code=1)
    assert "aggregate: " in output
    assert "rank 1 is missing, last seen in 'train in round 2'" in output
    assert "SIGKILL" not in output  # by which torchrun alone would end, after 30 s, the one that hangs


def test_sigkill_to_torchrun_leaves_no_orphan(start, tmp_path):
    reached = tmp_path / "reached"
    process = start(2, *faulty("work", client=1, round=2, once=reached), "--run.name=orphan")
    until(reached.exists, program=process)
    workers = _workers(process.pid)
    assert len(workers) == 2
    process.kill()
    until(lambda: not any(map(_cmdline, workers)))
    assert _status(tmp_path / "runs" / "orphan")["state"] == "interrupted"


def test_a_usage_error_is_one_line_from_one_rank(start):
    output = _finish(start(3, *SMALL, "--client.optimizer.lr=-1"), code=1)
    assert output.count("client.optimizer.lr=-1: should be greater than 0") == 1
    assert "exitcode  : 2" in output
