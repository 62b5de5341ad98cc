"""benchmarks.load looks at the ranks of a run and at its files while it goes on."""

import sys

import pytest

from benchmarks.load import samples

PROGRAM = """
import os, sys, time
os.environ["RANK"] or sys.exit(3)
run = sys.argv[1] + "/r"
os.makedirs(run + "/checkpoints")
held = []
for t in range(1, 5):
    held.append(open(sys.argv[0]))
    open(f"{run}/checkpoints/{t}", "wb").write(bytes(1000))
    open(run + "/metrics.jsonl", "a").write('{"round": %d}\\n' % t)
    time.sleep(0.5)
"""


def test_what_grows_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # or it would count as the launcher
    (tmp_path / "program.py").write_text(PROGRAM)
    first, last = samples([sys.executable, str(tmp_path / "program.py"), str(tmp_path)], tmp_path, 4, 2)
    assert first.rounds < last.rounds
    assert last.descriptors > first.descriptors
    assert last.kilobytes["checkpoints"] == last.rounds
    assert last.kilobytes["metrics.jsonl"] == pytest.approx(last.rounds * 0.013, abs=0.06)
    assert last.memory_mb > 1


def test_a_run_that_fails_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no such thing"):
        next(samples([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path, 4, 2))
