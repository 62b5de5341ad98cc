"""fedddp.checkpoints.run_folder: never overwritten, found again."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedddp.checkpoints import lock
from fedddp.checkpoints.lock import Busy
from fedddp.checkpoints.run_folder import RunFolder, locate, settle, state_of
from fedddp.comm.interrupt import Interrupted
from tests.helpers.waiting import until


def make(parent, *names, run="trial"):
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "config.toml").write_text(f'[run]\nname = "{run}"\n')


def test_a_new_run_takes_the_next_free_name(tmp_path):
    assert locate(tmp_path, "trial", "never") == RunFolder(tmp_path / "trial", resumed=False)
    make(tmp_path, "trial")
    assert locate(tmp_path, "trial", "never").path.name == "trial-2"
    make(tmp_path, "trial-2", "trial-9")
    assert locate(tmp_path, "trial", "never").path.name == "trial-10"


def test_nothing_is_created_yet(tmp_path):
    locate(tmp_path / "runs", "trial", "never")
    locate(tmp_path / "runs", "trial", "auto")
    assert list(tmp_path.iterdir()) == []


def test_auto_goes_on_with_the_newest_of_that_name(tmp_path):
    assert locate(tmp_path, "trial", "auto") == RunFolder(tmp_path / "trial", resumed=False)
    make(tmp_path, "trial", "trial-2", "trial-10")
    assert locate(tmp_path, "trial", "auto") == RunFolder(tmp_path / "trial-10", resumed=True)


def test_other_names_do_not_count(tmp_path):
    make(tmp_path, "trials", "trial-b", "trial-2b", "my-trial", "trial-")
    (tmp_path / "trial-3").touch()
    assert locate(tmp_path, "trial", "never").path.name == "trial"
    assert not locate(tmp_path, "trial", "auto").resumed


def test_a_run_folder_itself_is_resumed(tmp_path):
    make(tmp_path, "elsewhere")
    assert locate(tmp_path / "runs", "trial", str(tmp_path / "elsewhere")) == RunFolder(tmp_path / "elsewhere", True)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"run.resume='.*{name}': is not a run folder \(it has no config.toml\)"):
        locate(tmp_path, "trial", str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lr=0.1 b=10", "lr=0.1-b=10"),
        ("../../etc", "etc"),
        ("a/b", "a-b"),
        ("[x]*", "x"),
        ("...", "run"),
        ("fedavg-package.module:Class", "fedavg-package.module-Class"),
        ("été", "été"),
    ],
)
def test_a_label_becomes_one_harmless_folder_name(tmp_path, name, folder):
    assert locate(tmp_path, name, "never").path == tmp_path / folder
    make(tmp_path, folder, run=name)
    assert locate(tmp_path, name, "auto") == RunFolder(tmp_path / folder, resumed=True)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    folder = RunFolder(tmp_path, resumed=False)
    folder.write("note.txt", "a long first version")
    with (tmp_path / "note.txt").open() as open_before:
        folder.write("note.txt", "second")
        assert open_before.read() == "a long first version"
    assert (tmp_path / "note.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_status_says_state_process_and_time(tmp_path):
    RunFolder(tmp_path, resumed=False).status("running", round=3, rounds=9)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status.pop("updated")[:2] == "20"
    assert status == {"state": "running", "round": 3, "rounds": 9, "pid": os.getpid()}


def test_a_run_that_only_looks_like_a_number_of_another_is_not_taken_for_it(tmp_path):
    make(tmp_path, "trial")
    make(tmp_path, "trial-10", run="trial-10")
    assert locate(tmp_path, "trial", "auto").path.name == "trial"
    assert locate(tmp_path, "trial", "never").path.name == "trial-11"


def test_a_restart_goes_on_in_the_folder_of_its_own_launch_only(tmp_path):
    mine = locate(tmp_path, "trial", "never", "launch A").claimed("launch A")
    # claimed, but killed before it wrote its configuration: nothing to go on from
    assert locate(tmp_path, "trial", "never", "launch A").path.name == "trial-2"
    (mine.path / "config.toml").write_text('[run]\nname = "trial"\n')
    assert locate(tmp_path, "trial", "never", "launch A") == RunFolder(mine.path, resumed=True)
    assert locate(tmp_path, "trial", "never", "launch B").path.name == "trial-2"
    assert locate(tmp_path, "trial", "never", "").path.name == "trial-2"
    (mine.path / "summary.json").touch()
    assert not locate(tmp_path, "trial", "never", "launch A").resumed


def test_two_runs_that_start_together_do_not_share_a_folder(tmp_path):
    first, second = locate(tmp_path, "trial", "never"), locate(tmp_path, "trial", "never")
    assert first.path == second.path
    assert {first.claimed("").path.name, second.claimed("").path.name} == {"trial", "trial-2"}


HOLD = f"import runpy, sys; lock = runpy.run_path({lock.__file__!r}); kept = lock['hold'](lock['Path'](sys.argv[1]))"
"""The module alone: its package would import torch."""


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    words = [sys.executable, "-c", f"{HOLD}; print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    folder = RunFolder(tmp_path, resumed=True)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {other.pid} on .*, started 20"):
            folder.held()
        other.send_signal(signal.SIGKILL)
    first = folder.held()  # a killed process leaves no lock
    folder.held()  # nor is this process in its own way
    words[2] = HOLD
    assert (
        f"Busy: {tmp_path} is being written by process " in subprocess.run(words, capture_output=True, text=True).stderr
    )
    first.release()
    assert subprocess.run(words).returncode == 0
    again = folder.held()
    assert subprocess.run(words, capture_output=True).returncode == 1
    del again  # what nobody holds any more is free, released or not
    assert subprocess.run(words).returncode == 0


def test_a_run_that_begins_holds_its_folder(tmp_path):
    folder = locate(tmp_path, "trial", "never").claimed("")
    words = [sys.executable, "-c", HOLD, str(folder.path)]
    assert f"process {os.getpid()} on" in subprocess.run(words, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), {"state": "failed", "error": "ValueError: no"}),
        (OSError(28, "No space left"), {"state": "failed", "error": "OSError: [Errno 28] No space left"}),
        (Interrupted("SIGTERM"), {"state": "interrupted", "reason": "SIGTERM"}),
        (KeyboardInterrupt(), {"state": "interrupted", "reason": "KeyboardInterrupt"}),
    ],
)
def test_the_status_tells_how_a_run_ended(tmp_path, error, status):
    folder = RunFolder(tmp_path, resumed=False)
    folder.ended(error)
    keys = {"pid", "updated"}
    told = json.loads((tmp_path / "status.json").read_text())
    assert {k: v for k, v in told.items() if k not in keys} == status
    folder.status("running", round=3, rounds=9)
    folder.ended(error)
    told = json.loads((tmp_path / "status.json").read_text())
    assert {k: v for k, v in told.items() if k not in keys} == {**status, "round": 3, "rounds": 9}


def test_the_status_is_told_on_a_full_disk(tmp_path, monkeypatch):
    """There a new file has no room, but an old one can be written over."""
    folder = RunFolder(tmp_path, resumed=False)
    folder.status("running", round=30, rounds=90, more="as long as it may be")

    def full(self, *args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    folder.status("failed", error="no room")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "no room")


def running(path, **more):
    folder = RunFolder(path, resumed=True)
    folder.status("running", round=3, rounds=9, **more)
    return folder


def told(path):
    return json.loads((path / "status.json").read_text())


def test_the_next_start_writes_the_end_of_a_process_that_did_not(tmp_path):
    folder = running(tmp_path, pid=4711, updated="2026-01-01T00:00:00+0000")
    lost = folder.held().settle()
    assert lost.startswith("process 4711 ended without writing why (killed, or the machine failed), last heard of in")
    assert "round 3 at 2026-01-01" in lost
    status = told(tmp_path)
    assert (status["state"], status["round"], status["rounds"]) == ("interrupted", 3, 9)
    assert status["updated"] == "2026-01-01T00:00:00+0000"  # also null where no time may be told
    assert "process 4711" in status["reason"]
    assert folder.settle() is None  # it has its end


def test_a_launcher_writes_the_cause_that_it_knows_and_no_other_end_is_replaced(tmp_path):
    cause = {"error": "rank 0 was ended by SIGKILL"}
    folder = running(tmp_path)
    settle(tmp_path, "failed", "SIGTERM", **cause)
    assert (told(tmp_path)["state"], told(tmp_path)["error"]) == ("failed", cause["error"])
    folder.ended(Interrupted("SIGTERM"))  # by the launcher, since another rank failed
    settle(tmp_path, "failed", "SIGTERM", **cause)
    assert told(tmp_path)["error"] == cause["error"]
    assert "reason" not in told(tmp_path)
    for error in (ValueError("no"), Interrupted("SIGUSR1")):
        folder.ended(error)
        before = told(tmp_path)
        settle(tmp_path, "failed", "SIGTERM", **cause)
        settle(tmp_path)
        assert told(tmp_path) == before


def test_the_status_of_a_run_that_is_being_written_is_left_alone(tmp_path):
    folder = running(tmp_path).held()
    code = "import pathlib, sys; from fedddp.checkpoints.run_folder import settle; settle(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert told(tmp_path)["state"] == "running"
    folder.release()
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert told(tmp_path)["state"] == "interrupted"


def test_a_lock_is_renewed_and_a_silent_one_of_another_machine_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED", 0.05)
    folder = running(tmp_path).held()
    os.utime(tmp_path / lock.LOCK, (0, 0))
    until(lambda: lock.silent(tmp_path) < 60)
    folder.release()
    os.utime(tmp_path / lock.LOCK, (0, 0))
    time.sleep(0.2)
    assert lock.silent(tmp_path) > 1000
    (tmp_path / lock.LOCK).write_text(f"process 7 on another-machine, started 2026-01-01 00:00:00\n{lock.RENEWS}\n")
    assert state_of(tmp_path)[0] == "running"
    os.utime(tmp_path / lock.LOCK, (0, 0))
    assert state_of(tmp_path)[0] == "interrupted"


def test_a_reader_that_looks_does_not_keep_a_start_from_its_folder(tmp_path):
    folder = RunFolder(tmp_path, resumed=True)
    folder.held().release()
    with (tmp_path / lock.LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.08, file.close).start()
        assert folder.held().lock.held


@pytest.mark.parametrize("content", [None, "", "[run", "[run]\nrounds = 3\n"])
def test_auto_says_which_folder_it_does_not_go_on_with(tmp_path, logged, content):
    make(tmp_path, "trial", "trial-2")
    (tmp_path / "trial-2" / "metrics.jsonl").touch()
    (tmp_path / "trial-3").mkdir()  # nothing was begun there
    (tmp_path / "trial-2" / "config.toml").unlink()
    if content is not None:
        (tmp_path / "trial-2" / "config.toml").write_text(content)
    assert locate(tmp_path, "trial", "auto").path.name == "trial"
    (line,) = logged
    assert line.startswith(f"{tmp_path}/trial-2 has rounds of a run, but its config.toml is missing or cannot be read")
    locate(tmp_path, "trial", "never")
    make(tmp_path, "trial-4")
    assert locate(tmp_path, "trial", "auto").path.name == "trial-4"  # newer than what cannot be read
    assert len(logged) == 1


def test_a_folder_that_another_machine_writes_is_refused_where_locks_are_not_seen_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED", 0.2)
    file = tmp_path / lock.LOCK
    text = f"process 7 on another-machine, started 2026-01-01 00:00:00\n{lock.RENEWS}\n"
    file.write_text(text)
    over = threading.Event()

    def renew():
        while not over.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(Busy, match="is being written by process 7 on another-machine, started"):
        RunFolder(tmp_path, resumed=True).held()
    over.set()
    thread.join()
    assert file.read_text() == text
    folder = RunFolder(tmp_path, resumed=True).held()  # it renews no more
    folder.release()
    assert file.read_text() == ""


def test_a_folder_on_a_file_system_without_locks_is_named_and_renewed_all_the_same(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = RunFolder(tmp_path, resumed=True).held()
    assert folder.lock.held
    assert (tmp_path / lock.LOCK).read_text().startswith(f"process {os.getpid()} on ")
    folder.release()


def test_a_forked_child_leaves_the_lock_as_it_is(tmp_path):
    folder = RunFolder(tmp_path, resumed=True).held()
    text = (tmp_path / lock.LOCK).read_text()
    if not (child := os.fork()):
        folder.lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / lock.LOCK).read_text() == text
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    assert "Busy" in subprocess.run(words, capture_output=True, text=True).stderr
    folder.release()
