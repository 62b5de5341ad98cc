"""A sweep of real processes: Ctrl-C stops the run under way, with its checkpoint, and the same command goes on."""

import json
import os
import signal
import sys
import time

import pytest

FILE = """
[sweep]
nproc = 2
[base]
run = { rounds = 5, threads = 1, device = "cpu" }
data = { name = "synthetic", args = { num_train = 240, num_test = 60 } }
model = { name = "faulty:SlowMLP", seconds = 0.05 }
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
    deadline = time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline, "did not get to round 2 in time"
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 75, output
    assert "the same command resumes the sweep\nfedddp: SIGINT: stopped\n" in output
    status = json.loads((folder / "local_epochs=1" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert 2 <= status["round"] < 5

    second = start()
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output
    assert f"local_epochs=1  5 rounds, going on after round {status['round']}" in output
    assert [json.loads(line)["round"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert json.loads((folder / "local_epochs=1" / "summary.json").read_text())["world_size"] == 2
