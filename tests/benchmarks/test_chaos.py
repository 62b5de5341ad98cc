"""benchmarks.chaos sees what is wrong with a run, and leaves nothing behind."""

import json
import random
import subprocess
import sys

import pytest

from benchmarks.chaos import KINDS, MARK, ROUNDS, Disturbance, Run, checked
from fedddp.comm.faults import Fault


@pytest.fixture
def run(tmp_path):
    """What a run that is right leaves."""
    run = Run(tmp_path / "run", *KINDS["exact"])
    run.path.mkdir()
    (run.path / "metrics.jsonl").write_text("".join(json.dumps({"round": t}) + "\n" for t in range(1, ROUNDS + 1)))
    (run.path / "summary.json").write_text(json.dumps({"model_sha256": "abc"}))
    return run


def test_a_run_that_is_right_has_no_problem(run):
    assert checked(run, "abc") == []


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("wrong", lambda path: (path / "summary.json").write_text(json.dumps({"model_sha256": "xyz"}))),
        ("lost", lambda path: (path / "metrics.jsonl").write_text('{"round": 1}\n')),
        ("lost", lambda path: (path / "metrics.jsonl").open("a").write('{"round": 8}\n')),
        ("holes", lambda path: (path / "tensorboard").mkdir()),
        ("files", lambda path: (path / ".round-000003").mkdir()),
        ("files", lambda path: (path.parent / "tmp" / "torchelastic_x").mkdir()),
        ("reused", lambda path: (path / "privacy.jsonl").write_text('{"round": 1}\n')),
    ],
)
def test_what_is_wrong_is_found(run, what, change):
    change(run.path)
    assert [problem.partition(":")[0] for problem in checked(run, "abc")] == [what]


def test_processes_of_a_run_are_found_and_ended(run):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={MARK: run.mark})
    assert run.processes() == [process.pid]
    process.kill()
    process.wait()
    assert run.processes() == []


def test_disturbances_are_drawn_from_the_seed_and_can_be_read():
    drawn = [str(Disturbance.drawn(random.Random(seed), 3, 2)) for seed in range(200)]
    assert drawn == [str(Disturbance.drawn(random.Random(seed), 3, 2)) for seed in range(200)]
    faults = [Fault.parse(text) for text in drawn if "@" in text]
    assert 60 < len(faults) < 160
    assert all(3 <= fault.round <= ROUNDS for fault in faults)
