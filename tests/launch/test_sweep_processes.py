"""A sweep of real processes: Ctrl-C stops the run under way, with its checkpoint, and the same command goes on."""

import json
import os
import signal
import sys

import pytest

from tests.helpers.waiting import until

FILE = """
[sweep]
nproc = 2
[base]
run = { rounds = 5, threads = 1, device = "cpu" }
data = { name = "synthetic", args = { num_train = 240, num_test = 60 } }
model = { name = "mlp", hidden = 16 }
algorithm = { name = "faulty:Faulty", how = "work", client = 1, round = 3, once = "reached" }
telemetry.tensorboard = false
[grid]
client.local_epochs = [1]
"""


@pytest.fixture
def start(program, tmp_path):
    (tmp_path / "trial.toml").write_text(FILE)
    command, env = [sys.executable, "-m", "fedddp", "sweep", "trial.toml"], {**os.environ, "OMP_NUM_THREADS": "1"}
    return lambda: program(command, env)


def test_an_interrupted_sweep_goes_on_within_the_run(start, tmp_path):
    folder = tmp_path / "runs" / "trial"
    metrics = folder / "local_epochs=1" / "metrics.jsonl"
    first = start()
    until((tmp_path / "reached").exists, program=first)
    until(lambda: len(metrics.read_text().splitlines()) == 2, program=first)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 75, output
    assert "the same command resumes the sweep\nfedddp: SIGINT: stopped\n" in output
    status = json.loads((folder / "local_epochs=1" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["round"] == 2

    second = start()
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output
    assert "local_epochs=1  5 rounds, going on after round 2" in output
    assert [json.loads(line)["round"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert json.loads((folder / "local_epochs=1" / "summary.json").read_text())["world_size"] == 2


WARM = """
[sweep]
jobs = 2
[base]
run = { rounds = 2, device = "cpu" }
data = { name = "synthetic", args = { num_train = 120, num_test = 30 }, partition.num_clients = 2 }
telemetry.tensorboard = false
[axis.what]
fine = { model = { name = "mlp", hidden = 4 } }
dies = { model = { name = "dying:Dying" } }
[grid]
run.seed = [0, 1]
"""
DYING = """
import os, torch

class Dying(torch.nn.Flatten):
    def __init__(self):
        os.kill(os.getpid(), 9)
"""


def test_runs_side_by_side_in_forked_processes_and_a_crash_costs_its_run_only(program, tmp_path):
    (tmp_path / "trial.toml").write_text(WARM)
    (tmp_path / "dying.py").write_text(DYING)
    sweep = program([sys.executable, "-m", "fedddp", "sweep", "trial.toml"], {**os.environ, "OMP_NUM_THREADS": "1"})
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 1, output
    done = [json.loads(path.read_text())["rounds"] for path in (tmp_path / "runs/trial").glob("*/summary.json")]
    assert done == [2, 2]
    for seed in (0, 1):
        assert f"dies-seed={seed}  failed: ended by SIGKILL" in output
        assert "round 2/2" in (tmp_path / f"runs/trial/logs/fine-seed={seed}.txt").read_text()
    assert r"fine & $\mathbf{" in (tmp_path / "runs/trial/table.tex").read_text()
    assert (tmp_path / "runs/trial/curves.pdf").read_bytes().startswith(b"%PDF")
