"""fedddp.run_folder: never overwritten, found again."""

import json
import os

import pytest

from fedddp.run_folder import RunFolder, locate


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
