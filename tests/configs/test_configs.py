"""Every file in configs/ parses, says in its header how to run it, and trains a round (on the embedded digits)."""

import json
from pathlib import Path

import pytest

from fedddp.config import build, parse
from fedddp.train import main

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.toml"))


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_header_tells_command_and_expectation(path):
    header = path.read_text().split("\n[")[0]
    assert f"-m fedddp.train {name_of(path)}" in header
    assert "Expected: " in header
    assert "Measured: " in header


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_trains_a_round(path, tmp_path):
    build(*parse([str(path)]).layers)  # as it stands
    changes = [
        "--data.name=mnist-mini",
        "--data.partition.num_clients=20",
        "--client.local_epochs=1",
        "--run.rounds=1",
        "--run.name=once",
        "--run.threads=1",
        f"--run.dir={tmp_path}",
        "--telemetry.tensorboard=false",
    ]
    assert main([str(path), *changes]) == 0
    assert json.loads((tmp_path / "once" / "summary.json").read_text())["rounds"] == 1
