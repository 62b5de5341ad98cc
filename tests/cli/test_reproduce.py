"""fedddp reproduce: published numbers belong to rows of the sweeps, and the quick versions run."""

import json
import tomllib

import pytest

from fedddp.cli.main import main
from fedddp.cli.options import PUBLISHED as NAMES
from fedddp.cli.reproduce.command import PUBLISHED, SCALE, compared
from fedddp.cli.sweep.grid import read
from fedddp.cli.sweep.table import RunResult, rows
from fedddp.config import merge, nested
from fedddp.registry.shipped import located

TABLES = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))


def test_every_table_can_be_named():
    assert list(TABLES) == list(NAMES)
    assert {table["unit"] for table in TABLES.values()} <= set(SCALE)


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers_are_those_of_rows_of_the_sweep_and_the_quick_version_has_some(name):
    table = TABLES[name]
    sweep = read(located(table["sweep"]))
    labels = {" / ".join(run.labels[axis] for axis in sweep.shown) for run in sweep.runs}
    assert set(table["numbers"]) == labels
    quick = table["quick"]
    small = read(located(table["sweep"]), merge(nested(quick["keys"]), {"sweep": quick["sweep"]}))
    chosen = small.only(quick["only"])
    assert 2 <= len(chosen) <= 6
    assert {run.config.data.name for run in chosen} == {"mnist-mini"}


def made_up(name, **values):
    """Lines of ours: the summaries of the runs of seed 0, by their label."""
    sweep = read(located(TABLES[name]["sweep"]))
    outcomes = []
    for run in sweep.runs:
        label = "/".join(run.labels[axis] for axis in sweep.shown)
        value = values.get(label) if run.config.run.seed == 0 else None
        history = [{"round": t, "test_accuracy": 0.985 + t / 1000} for t in (1, 5, 9)] if value else []
        outcomes.append(RunResult(run, {"final_test_accuracy": value} if value else None, history))
    return lambda **how: {line["row"]: line for line in compared(TABLES[name], rows(sweep, outcomes), **how)}


def test_ours_is_in_their_unit_and_the_difference_is_ours_minus_theirs():
    lines = made_up("niid_mnist", **{"iid/fedavg": 0.99, "1 label/fedavg": 0.3})(comparable=True)
    assert lines["iid / fedavg"]["difference"] == pytest.approx(99.0 - 99.09)
    assert lines["1 label / fedavg"]["ours"] == pytest.approx(30)
    assert lines["iid / fednova"] == {
        "row": "iid / fednova",
        "theirs": 99.05,
        "ours": None,
        "runs": 0,
        "difference": None,
    }
    lines = made_up("mcmahan", **{"iid/E=1 B=10": 0.994})(comparable=True)
    assert lines["iid / E=1 B=10"]["ours"] == 5
    assert lines["iid / E=1 B=10"]["difference"] == 5 - 34


def test_a_quick_version_has_no_difference():
    lines = made_up("niid_mnist", **{"iid/fedavg": 0.9})(comparable=False)
    assert lines["iid / fedavg"]["ours"] == pytest.approx(90)
    assert lines["iid / fedavg"]["difference"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [(["mcmahon"], "mcmahon"), (["mcmahan", "mnist/fedavg"], "the table's sweep is its only file")],
)
def test_a_mistake_is_one_line(words, told, capsys):
    assert main(["reproduce", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [("mcmahan", "iid / E=5 B=10"), ("niid_mnist", "2 labels / scaffold")])
def test_the_quick_version_runs_and_says_what_it_is(name, row, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", name, "--quick"]) == 0
    said = capsys.readouterr().out
    assert "QUICK: scaled down, so ours and theirs are not comparable: 10,000 embedded digits" in said
    found = json.loads((tmp_path / f"runs/{name}-quick/reproduced.json").read_text())
    lines = {line["row"]: line for line in found["lines"]}
    assert lines[row]["ours"] is not None
    assert found["data"] == "mnist-mini"
    assert found["quick"]
    assert {"cpu", "torch", "git"} <= set(found["environment"])
    assert found["date"].startswith("20")
    text = (tmp_path / f"runs/{name}-quick/reproduced.md").read_text()
    assert "Scaled down, not comparable" in text
    assert f"| {row} |" in text
