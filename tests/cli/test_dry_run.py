"""fedddp train --dry-run: everything is tried on a few examples, and nothing stays."""

import os
import tempfile
from pathlib import Path

import pytest

from fedddp.cli.main import main as fedddp
from fedddp.config import read_toml
from fedddp.train import main

ROOT = Path(__file__).parents[2]
RUNS = sorted(path for path in (ROOT / "configs").glob("*/*.toml") if path.parent.name != "sweeps")


def needs_files(path):
    keys = read_toml(path)
    data, model = keys.get("data", {}).get("name", "mnist-mini"), keys.get("model", {}).get("name", "cnn")
    return not data.endswith("-mini") or model.startswith("hf:")


EMBEDDED = [path for path in RUNS if not needs_files(path)]
SMALL = ["--model=mlp", "--model.hidden=4", "--data=synthetic", "--data.args={num_train=400, num_test=50}"]
SMALL += ["--run.threads=1", "--clients=20"]
TRIED = ["data", "checks", "training", "evaluation", "checkpoint", "resume"]

HANDFUL = {
    "plain": [],
    "a cohort": ["--cohort.fraction=0.25", "--client.local_steps=7"],
    "a state on each client": ["--algorithm=scaffold", "--client.batch_size=0"],
    "scored on the clients": ["--algorithm=ditto", "--evaluate.holdout=0.2", "--evaluate.personal_every=3"],
    "a rule that needs a majority": ["--aggregation.rule=krum", "--attack=sign_flip", "--attack.num_clients=4"],
    "a target that is reached at once": ["--evaluate.target_accuracy=0.01"],
    "client level": ["--privacy.level=client", "--privacy.target_epsilon=5", "--privacy.delta=1e-3"],
    "example level": ["--privacy.level=example", "--privacy.target_epsilon=5", "--privacy.delta=1e-4"],
}


def tried(capsys):
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("nothing of it is kept")
    return {line.split()[0]: line for line in lines[:-1]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder, and a folder for temporary files, that are to stay empty."""
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield tmp_path
    left = [name for folder in ("work", "tmp") for name in os.listdir(tmp_path / folder)]
    assert [name for name in left if not name.startswith("torchinductor_")] == []  # torch's own, made by its import


@pytest.mark.slow
@pytest.mark.parametrize("case", HANDFUL)
def test_each_part_is_tried_and_nothing_stays(case, here, capsys):
    assert main([*SMALL, *HANDFUL[case], "--dry-run"]) == 0
    found = tried(capsys)
    assert list(found) == TRIED
    assert "round 2 from the checkpoint of round 1" in found["resume"]
    assert ("personal" in found["evaluation"]) == (case == "scored on the clients")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--data=mnist", "--data.root=nowhere"], "data.root='nowhere'"),
        (["--model.hidden=-1"], "model.hidden=-1"),
        (["--aggregation.rule=krum", "--aggregation.rule.byzantine=19"], "aggregation.rule"),
    ],
)
def test_what_a_run_would_be_refused_for_is_one_line(words, key, here, capsys):
    assert main([*SMALL, *words, "--dry-run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stands for" not in line]
    assert key in line


def test_several_ranks_are_refused_in_one_line(here, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("fedddp.cli.outcome.leave", lambda code: None)
    assert main([*SMALL, "--dry-run"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_launch_says_where_it_belongs(here, capsys):
    assert fedddp(["launch", "-n", "2", "--dry-run"]) == 2
    assert "fedddp train --dry-run" in capsys.readouterr().err


def test_a_partys_account_does_not_hear_of_it(here):
    assert main([*SMALL, *HANDFUL["client level"], "--privacy.account.dir=account", "--dry-run"]) in (0, 2)
    assert not (here / "work" / "account").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_configuration_without_files_is_tried(path, here, capsys):
    assert main([str(path), "--run.threads=1", "--dry-run"]) == 0
    assert list(tried(capsys)) == TRIED
