"""fedddp tensorboard: what runs are called, and that the server ends with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedddp.cli import board
from fedddp.cli.main import main
from tests.helpers.waiting import until


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("fedavg", "trial/slow-seed=0", "trial/fast-seed=0", "trial/plain"):
        (tmp_path / "runs" / run / ("tensorboard" if "plain" not in run else "checkpoints")).mkdir(parents=True)
    return tmp_path / "runs"


def test_runs_have_their_own_names_and_those_of_a_sweep_its_name(runs):
    assert sorted(board.found([runs])) == ["fedavg", "trial/fast-seed=0", "trial/slow-seed=0"]
    assert sorted(board.found([runs / "trial"])) == ["fast-seed=0", "slow-seed=0"]
    assert board.found([runs / "fedavg"]) == {"fedavg": runs / "fedavg/tensorboard"}


def test_runs_of_one_name_in_two_folders_are_both_shown(runs, tmp_path):
    (tmp_path / "other/fedavg/tensorboard").mkdir(parents=True)
    assert {"fedavg", "other/fedavg"} <= set(board.found([runs, tmp_path / "other"]))


def test_new_runs_are_linked_beside_those_that_are_there(runs, tmp_path):
    board.link([runs], tmp_path / "page")
    (runs / "late/tensorboard").mkdir(parents=True)
    board.link([runs], tmp_path / "page")
    assert (tmp_path / "page/late").resolve() == runs / "late/tensorboard"
    assert (tmp_path / "page/trial/fast-seed=0").is_dir()


def test_a_folder_without_runs_is_a_mistake_in_one_line(tmp_path, capsys):
    assert main(["tensorboard", str(tmp_path / "nothing")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no run" in line


@pytest.mark.slow
def test_the_server_ends_with_the_command(runs, tmp_path):
    """Its folder of links too."""
    command = [sys.executable, "-m", "fedddp", "tensorboard", str(runs), "--port=0"]
    (tmp_path / "temporary").mkdir()
    started = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")})
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    until(lambda: children.read_text().split())
    (server,) = children.read_text().split()
    started.send_signal(signal.SIGTERM)
    started.wait(timeout=60)
    assert not Path(f"/proc/{server}").exists()
    assert list((tmp_path / "temporary").glob("fedddp-tensorboard-*")) == []
