"""Every file in configs/ parses, says in its header how to run it, and trains a round, on little data.

Of a sweep every run is checked, and the first one trains a round.
"""

import json
import re
from pathlib import Path

import pytest
import tomli_w

from fedddp.cli.sweep.grid import read
from fedddp.config import build, merge, read_toml
from fedddp.train import main

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.toml"))
SWEEPS = [path for path in FILES if "sweep" in read_toml(path)]
RUNS = [path for path in FILES if path not in SWEEPS]
SHAPES = {"cifar10": [3, 32, 32]}
"""Of the datasets that are not 28x28 and grey."""

ROLES = {"name": "shakespeare-mini", "args": {"min_characters": 29_000}, "partition": {"num_clients": 2}}
EMBEDDED = {"shakespeare-mini": ROLES, "shakespeare": ROLES}
"""What is left of datasets that need no files and are no images."""

GPT = {"name": "gpt", "width": 8, "layers": 1, "heads": 2}
"""Stands for pretrained models, which are in no folder here."""

MOST_CLIENTS, EXAMPLES_EACH = 10, 40


def name_of(path):
    return str(path.relative_to(ROOT))


def small(table, folder):
    """The same run for one round, on synthetic images of the data's shape: at most ten clients of forty examples."""
    name, clients = table.get("data", {}).get("name"), build(table).data.partition.num_clients
    clients = min(clients or MOST_CLIENTS, MOST_CLIENTS)
    images = {"num_train": EXAMPLES_EACH * clients, "num_test": 20, "shape": SHAPES.get(name, [1, 28, 28])}
    cohort = {"size": min(table["cohort"]["size"], clients)} if "size" in table.get("cohort", {}) else {}
    changes = {
        "run": {"rounds": 1, "name": "once", "dir": str(folder), "threads": 1},
        "data": {"name": "synthetic", "partition": {"num_clients": clients}},
        "cohort": cohort,
        "client": {"local_epochs": 1, "stragglers": 0},
        "telemetry": {"tensorboard": False},
    }
    if table.get("model", {}).get("name", "").startswith("hf:"):
        arguments = {key: value for key, value in table["data"]["args"].items() if key != "tokenizer"}
        table = {**table, "model": GPT, "data": {**table["data"], "args": arguments}}
    if name in EMBEDDED:
        changes |= {"data": EMBEDDED[name], "cohort": {"size": 2}}
        return merge(table, changes)
    changed = merge(table, changes)
    changed["data"]["args"] = images
    return changed


def trained(table, folder):
    """The summary of a table's run, made small."""
    (folder / "small.toml").write_text(tomli_w.dumps(small(table, folder)))
    assert main([str(folder / "small.toml")]) == 0
    return json.loads((folder / "once" / "summary.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_header_tells_command_and_expectation(path):
    header = path.read_text().split("\n[")[0]
    program = "fedddp sweep" if path in SWEEPS else "fedddp (train|launch -n 2)"
    assert re.search(rf"^#   {program} {path.parent.name}/{path.stem}( |$)", header, re.MULTILINE)
    assert "Expected: " in header
    assert "Measured: " in header


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_trains_a_round(path, tmp_path):
    table = read_toml(path)
    build(table)  # as it stands
    assert trained(table, tmp_path)["rounds"] == 1


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_every_run_of_a_sweep_is_possible_and_the_first_trains_a_round(path, tmp_path):
    sweep = read(path)
    assert len(sweep.runs) == len({run.name for run in sweep.runs}) > 1
    assert trained(dict(sweep.runs[0].table), tmp_path)["rounds"] == 1


def test_a_small_run_is_the_files_run_but_for_its_size(tmp_path):
    """The reader of the tests above should know what is kept."""
    table = {
        "data": {"name": "cifar10", "args": {"split": "x"}, "partition": {"name": "shards", "num_clients": 100}},
        "cohort": {"size": 20},
        "client": {"batch_size": 7, "local_epochs": 5},
    }
    config = build(small(table, tmp_path))
    assert type(config.data.partition).__name__ == "Shards"
    assert (config.data.partition.num_clients, config.cohort.size) == (10, 10)
    assert config.data.args == {"num_train": 400, "num_test": 20, "shape": [3, 32, 32]}
    assert (config.client.batch_size, config.client.local_epochs, config.run.rounds) == (7, 1, 1)
