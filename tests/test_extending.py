"""Pages with code: every example in them is short, and runs as it stands."""

import json
import re
import shlex

import pytest

from fedddp.cli.sweep.grid import read
from fedddp.train import main
from tests.docs.pages import DOCS, ROOT, blocks
from tests.docs.pages import mine as mine

EXTENDING = (DOCS / "extending.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in EXTENDING.split("\n## ")[1:]}
SMALL = {
    "--data.name": "synthetic",
    "--data.args": "{num_train=120, num_test=20}",
    "--data.partition.num_clients": "4",
    "--model.name": "logistic",
}
"""For what a section does not show: little to do."""


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
    assert words[:2] == ["fedddp", "train"]
    given = words[2:]
    keys = {word.partition("=")[0] for word in given}
    small = {} if "--data.name" in keys else {"--data.args": SMALL["--data.args"]}
    small |= {key: value for key, value in SMALL.items() if key not in keys and key != "--data.args"}
    quiet = ["--run.rounds=2", "--run.name=mine", "--run.threads=1", "--telemetry.tensorboard=false"]
    assert main([*given, *(f"{key}={value}" for key, value in small.items()), *quiet]) == 0
    summary = json.loads((mine / "runs" / "mine" / "summary.json").read_text())
    assert summary["rounds"] == 2
    own = re.search(r"mine\.\w+:\w+", command)[0]
    config = (mine / "runs" / "mine" / "config.toml").read_text()
    assert f'"{own}"' in config
    for key, _, value in (word.partition("=") for word in given):
        assert value.strip("[]") in config, f"{key} has come to nothing"


def test_the_scripts_of_the_first_model_run(mine):
    run, arrays, assemble = blocks((DOCS / "first-model.md").read_text(), "python")
    (mine / "configs").symlink_to(ROOT / "configs")
    assert names_after(run, {"rounds=10": "rounds=1", "fedddp.run(keys": "fedddp.run(keys, SMALL"})["result"].w.numel()
    quiet = {"rounds=2": "rounds=2, telemetry={'tensorboard': False}"}
    assert names_after(arrays, quiet)["result"].summary["num_clients"] == 2
    small = {"(1, 6)": "(1, 3)", 'data="mnist-mini"': 'model={"hidden": 4}, **SMALL'}
    assert names_after(assemble, small)["server"].round == 2


def test_the_script_of_the_readme_runs(mine):
    (code,) = blocks((ROOT / "README.md").read_text(), "python")
    small = {"rounds=5": "rounds=1", "fedddp.run({": "fedddp.run(SMALL, {"}
    assert names_after(code, small)["result"].summary["rounds"] == 1


def test_the_trained_model_is_used(mine):
    (code,) = blocks((DOCS / "trained-model.md").read_text(), "python")
    small = [f"{key}={value}" for key, value in SMALL.items()]
    assert main([*small, "--run.name=NAME", "--run.rounds=1", "--run.threads=1", "--telemetry.tensorboard=false"]) == 0
    names = names_after(code, {})
    assert names["predict"](names["images"]).shape == (5, 10)


def test_the_algorithm_for_those_who_come_from_flower_trains(mine):
    _, code = blocks((DOCS / "from-flower.md").read_text(), "python")
    proximal = names_after(code, {})["Proximal"](mu=0.1)
    names = names_after(
        "import fedddp\nresult = fedddp.run(SMALL, rounds=1, model='logistic', algorithm=own)", {}, own=proximal
    )
    assert names["result"].history[0]["failures"] == 0


def test_the_sweep_is_possible(mine):
    (text,) = blocks((DOCS / "sweeps.md").read_text(), "toml")
    (mine / "sweeps").mkdir()
    (mine / "mnist").symlink_to(ROOT / "configs" / "mnist")
    (mine / "sweeps" / "mine.toml").write_text(text)
    names = [run.name for run in read(mine / "sweeps" / "mine.toml").runs]
    assert len(names) == 12
    assert names[0] == "iid-local_epochs=1-seed=0"


def names_after(code, small, **names):
    """What a script leaves, run with what makes it short in the place of what is shown; SMALL is little data."""
    for shown, instead in small.items():
        assert shown in code
        code = code.replace(shown, instead)
    data = {"name": "synthetic", "args": {"num_train": 120, "num_test": 20}, "partition": {"num_clients": 10}}
    names |= {"SMALL": {"data": data, "telemetry": {"tensorboard": False}}, "__name__": "page"}
    exec(compile(code, "page", "exec"), names)
    return names
