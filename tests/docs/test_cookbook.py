"""docs/cookbook.md: every option is possible, and the short ones train a round; commands on the other pages parse."""

import json
import re
import shlex

import pytest

from fedddp.cli.main import main as command
from fedddp.train import main

from .pages import DOCS, PAGES, ROOT, blocks, tables, words
from .pages import mine as mine

pytestmark = pytest.mark.slow

ROWS = {row[0]: row[1].strip("`") for table in tables((DOCS / "cookbook.md").read_text()) for row in table}
OPTIONS = {task: shlex.split(option) for task, option in ROWS.items() if option.startswith("--")}
COMMANDS = {task: shlex.split(option)[1:] for task, option in ROWS.items() if option.startswith("fedddp ")}
UNHANDY = (
    "secure_aggregation",
    "data.name=",
    "weights=",
    "1000000",
    "gan",
    "resnet",
    "svm",
    "bfloat16",
    "resume",
    "epsilon",
)
"""In options of which a tiny round needs three ranks, a download, another run, or more than a moment."""
SMALL = {
    "--data.name": "synthetic",
    "--data.args": "{num_train=240, num_test=20}",
    "--data.partition.num_clients": "4",
    "--model.name": "logistic",
}
QUIET = ["--run.rounds=1", "--run.threads=1", "--telemetry.tensorboard=false", "--telemetry.progress=off"]


@pytest.fixture
def extended(mine):
    """A folder of one's own with the models and datasets of docs/extending.md."""
    (mine / "configs").symlink_to(ROOT / "configs")
    for block in blocks((DOCS / "extending.md").read_text(), "python"):
        path = mine / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    return mine


def programs():
    """Commands of fedddp in the shell blocks of all pages, as words."""
    for path in PAGES:
        for block in blocks(path.read_text(), ""):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^torchrun \S+ -m fedddp(.train)?", lambda m: "fedddp train" if m[1] else "fedddp", line)
                if line.startswith("fedddp ") and "..." not in line:
                    yield pytest.param(words(line)[1:], id=f"{path.name}: {line[:60]}")


@pytest.mark.parametrize("task", OPTIONS)
def test_every_option_is_possible(task, extended, capsys):
    assert main([*OPTIONS[task], "--print-config=all"]) == 0
    assert "[run]" in capsys.readouterr().out


@pytest.mark.parametrize("task", [task for task in OPTIONS if not any(word in ROWS[task] for word in UNHANDY)])
def test_a_short_one_trains_a_round(task, extended):
    given = {word.partition("=")[0] for word in OPTIONS[task]}
    small = [f"{key}={value}" for key, value in SMALL.items() if key not in given]
    named = [] if "--run.name" in given else ["--run.name=once"]
    assert main([*small, *QUIET, *OPTIONS[task], *named]) == 0
    (summary,) = (extended / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["rounds"] == 1


@pytest.mark.parametrize("given", list(programs()))
def test_the_commands_of_the_pages_are_possible(given, extended, monkeypatch):
    """Of those that train, with their configuration; of the others, as far as their options go."""
    if any(re.search("[A-Z]{4}", word.partition("=")[0]) or word.startswith("[") for word in given):
        pytest.skip("says where a reader's file comes")
    monkeypatch.chdir(ROOT)
    kept = [word for word in given if not re.fullmatch(r"[\w/-]+\.toml", word) or (ROOT / word).exists()]
    if given[:1] in (["train"], ["launch"]):
        assert command([*kept, "--print-config"]) == 0
    else:
        assert command([*kept, "--help"] if kept else []) == 0


def test_the_cookbook_has_its_commands():
    assert len(OPTIONS) > 40
    others = {"new", "show", "plot", "report", "sweep", "tune", "audit", "doctor"}
    assert {command[0] for command in COMMANDS.values()} == others


def test_the_short_commands_of_the_cookbook_run(extended):
    for name in ("show", "sweep"):
        (given,) = [words for words in COMMANDS.values() if words[0] == name]
        assert command(given) == 0, name
