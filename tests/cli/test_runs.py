"""fedddp runs and fedddp rm: real states, and nothing removed that is not meant."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fedddp.checkpoints.lock import LOCK
from fedddp.checkpoints.run_folder import RunFolder, state_of
from fedddp.cli import runs
from fedddp.cli.main import main


def made(parent, name, state="done", rounds=3, **metrics):
    path = parent / name
    path.mkdir(parents=True)
    (path / "config.toml").write_text(f'[run]\nname = "{name}"\n')
    lines = [{"round": t, "test_r2": 0.25 * t, "test_accuracy": None, "seconds": 40.0} for t in range(1, rounds + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = RunFolder(path, resumed=True)
    folder.status(state, round=rounds, rounds=5)
    return folder


def listed(capsys, *words):
    assert main(["runs", *map(str, words)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in row.strip("│").split("│")] for row in rows)}


def test_runs_are_listed_with_state_rounds_metric_time_and_size(tmp_path, capsys):
    made(tmp_path, "one")
    made(tmp_path / "sweep", "two[red]", "failed", rounds=1)
    (tmp_path / "no run").mkdir()
    found = listed(capsys, tmp_path)
    assert list(found) == ["one", "sweep/two[red]"]
    assert found["one"][:4] == ["done", "3/5", "r2 0.75", "2:00"]
    assert found["sweep/two[red]"][:4] == ["failed", "1/5", "r2 0.25", "0:40"]
    assert all(row[4].endswith(("bytes", "kB")) for row in found.values())


def test_a_run_whose_process_is_gone_is_interrupted_and_one_that_is_locked_runs(tmp_path):
    folder = made(tmp_path, "killed", "running")
    lock = folder.held()
    assert state_of(folder.path)[0] == "running"
    lock.release()
    assert state_of(folder.path)[0] == "interrupted"
    (folder.path / LOCK).write_text("process 7 on another-machine, started 2026-01-01 00:00:00\n")
    assert state_of(folder.path)[0] == "running"
    (folder.path / LOCK).unlink()
    assert state_of(folder.path)[0] == "interrupted"


@pytest.mark.slow
def test_a_run_that_is_killed_is_listed_as_interrupted(tmp_path):
    words = [
        "--data=synthetic",
        "--model=mlp",
        "--rounds=1000",
        "--model.hidden=4",
        f"--run.dir={tmp_path}",
        "--run.name=a",
    ]
    command = [sys.executable, "-m", "fedddp.train", *words, "--telemetry.tensorboard=false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert any(" 1/1000 " in line for line in process.stdout)
    assert state_of(tmp_path / "a")[0] == "running"
    assert main(["rm", "--yes", str(tmp_path / "a")]) == 2
    process.kill()
    process.communicate()
    assert state_of(tmp_path / "a")[0] == "interrupted"


@pytest.mark.parametrize("damage", ["metrics.jsonl", "status.json", ".lock"])
def test_damaged_and_missing_files_are_no_error(tmp_path, capsys, damage):
    folder = made(tmp_path, "a", "running")
    (folder.path / damage).write_text('\x00{"round": ')
    assert "a" in listed(capsys, tmp_path)
    if damage == "metrics.jsonl":
        (folder.path / damage).unlink()
        assert listed(capsys, tmp_path)["a"][2] == ""


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"fedddp: {tmp_path}: ")


def test_watching_takes_a_terminal_and_ends_with_ctrl_c(tmp_path, capsys, monkeypatch):
    made(tmp_path, "one")
    assert main(["runs", str(tmp_path), "--watch"]) == 2
    assert "--watch" in capsys.readouterr().err
    looks = []

    def sleep(_):
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["runs", str(tmp_path), "--watch"]) == 0
    assert len(looks) == 2


def test_run_folders_are_removed_and_nothing_else(tmp_path, capsys):
    for name in ("a", "b", "kept"):
        made(tmp_path, name)
    assert main(["rm", "--yes", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert capsys.readouterr().out.startswith("removed 2 runs, ")


@pytest.mark.parametrize("what", ["other", "link", "missing", "running", "parent"])
def test_what_is_no_finished_run_is_refused_and_then_nothing_is_removed(tmp_path, capsys, what):
    made(tmp_path, "a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("x = 1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    running = made(tmp_path, "running", "running").held()
    named = tmp_path if what == "parent" else tmp_path / what
    assert main(["rm", "--yes", str(tmp_path / "a"), str(named)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(named) in line
    assert (tmp_path / "a" / "config.toml").exists()
    running.release()


@pytest.mark.parametrize(("said", "removed"), [("y", True), ("", False), ("no", False)])
def test_it_asks_on_a_terminal(tmp_path, capsys, monkeypatch, said, removed):
    made(tmp_path, "a")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or said)
    assert main(["rm", str(tmp_path / "a")]) == 0
    assert str(tmp_path / "a") in asked[0]
    assert (tmp_path / "a").exists() != removed


def test_without_a_terminal_it_does_not_guess(tmp_path, capsys, monkeypatch):
    made(tmp_path, "a")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert main(["rm", str(tmp_path / "a")]) == 2
    assert "--yes" in capsys.readouterr().err
    assert (tmp_path / "a").exists()


def test_neither_imports_torch(tmp_path):
    made(tmp_path, "a")
    code = "import sys; from fedddp.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words in (["runs", str(tmp_path)], ["rm", "--yes", str(tmp_path / "a")]):
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
