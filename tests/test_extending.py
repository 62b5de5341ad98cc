"""docs/extending.md and README.md: every example there is short, and runs as it stands."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from fedddp.cli.sweep.grid import read
from fedddp.train import main

ROOT = Path(__file__).parents[1]
EXTENDING, README = (ROOT / "docs" / "extending.md").read_text(), (ROOT / "README.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in EXTENDING.split("\n## ")[1:]}
SMALL = {
    "--data.name": "synthetic",
    "--data.args": "{num_train=120, num_test=20}",
    "--data.partition.num_clients": "4",
    "--model.name": "logistic",
}
"""For what a section does not show: little to do."""


def blocks(text, language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for said, block in fenced if said == language]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of one's own on the path, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_the_page_has_its_sections():
    assert {"An algorithm", "A model", "A dataset", "A partition"} <= set(SECTIONS)


@pytest.mark.parametrize("title", SECTIONS)
def test_an_extension_is_short_and_its_command_trains(title, mine):
    (code,) = blocks(SECTIONS[title], "python")
    (command,) = blocks(SECTIONS[title], "")
    assert len(code.splitlines()) < 30
    path = mine / re.match(r"# (mine/\w+\.py)\n", code)[1]
    path.parent.mkdir()
    path.write_text(code)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "fedddp.train"]
    given = words[3:]
    keys = {word.partition("=")[0] for word in given}
    small = {} if "--data.name" in keys else {"--data.args": SMALL["--data.args"]}
    small |= {key: value for key, value in SMALL.items() if key not in keys and key != "--data.args"}
    quiet = ["--run.rounds=2", "--run.name=mine", "--run.threads=1", "--telemetry.tensorboard=false"]
    assert main([*given, *(f"{key}={value}" for key, value in small.items()), *quiet]) == 0
    summary = json.loads((mine / "runs" / "mine" / "summary.json").read_text())
    assert summary["rounds"] == 2
    own = re.search(r"mine\.\w+:\w+", command)[0]
    config = (mine / "runs" / "mine" / "config.toml").read_text()
    assert f'name = "{own}"' in config
    for key, _, value in (word.partition("=") for word in given):
        assert value in config, f"{key} has come to nothing"


def test_the_script_of_the_readme_runs(mine):
    (code,) = [block for block in blocks(README, "python") if "fedddp.run(" in block]
    (mine / "configs").symlink_to(ROOT / "configs")
    for shown, small in {
        "rounds=10": "rounds=1",
        "(1, 6)": "(1, 3)",
        "fedddp.run(keys": "fedddp.run(keys, SMALL",
        'data="mnist-mini"': 'model={"hidden": 4}, **SMALL',
    }.items():
        assert shown in code
        code = code.replace(shown, small)
    data = {"name": "synthetic", "args": {"num_train": 120, "num_test": 20}, "partition": {"num_clients": 10}}
    names = {"SMALL": {"data": data, "telemetry": {"tensorboard": False}}}
    exec(compile(code, "README.md", "exec"), names)
    assert names["result"].summary["rounds"] == 1
    assert names["server"].round == 2


def test_the_trained_model_of_the_readme_is_used(mine, capsys):
    (code,) = [block for block in blocks(README, "python") if "fedddp.load(" in block]
    small = [f"{key}={value}" for key, value in SMALL.items()]
    assert main([*small, "--run.name=NAME", "--run.rounds=1", "--run.threads=1", "--telemetry.tensorboard=false"]) == 0
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["model"](names["normalize"](names["images"])).shape == (5, 10)


def test_the_sweep_of_the_readme_is_possible(mine):
    (text,) = [block for block in blocks(README, "toml") if "[sweep]" in block]
    (mine / "sweeps").mkdir()
    (mine / "mnist").symlink_to(ROOT / "configs" / "mnist")
    (mine / "sweeps" / "mine.toml").write_text(text)
    names = [run.name for run in read(mine / "sweeps" / "mine.toml").runs]
    assert len(names) == 12
    assert names[0] == "iid-local_epochs=1-seed=0"
