"""The programs and notebooks in examples/: each is short, runs, and shows what it says."""

import json
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow

PROGRAMS = sorted(path.stem for path in (ROOT / "examples").glob("[a-z]*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RANKS = {"secure_and_private": 3}
SHOWN = {
    "fedavg": "round 1: accuracy",
    "small_data": "models of all rows together: AUROC",
    "own_algorithm": "FedExP",
    "secure_and_private": "aggregate            int64",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_for_two_rounds(name, tmp_path):
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS.get(name, 1)}"]
    command = [sys.executable, *(ranks if name in RANKS else []), "-m", f"examples.{name}", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert SHOWN[name] in result.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_at_most_60_lines(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    command = [sys.executable, "-m", "tools.notebook", str(path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_holds_its_output(path):
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 15
    assert any(cell.get("outputs") for cell in cells)


def test_the_digit_of_the_notebook_is_read_from_its_update():
    for path in [path for path in NOTEBOOKS if "private" in path.stem]:
        assert "correlation 1.0000" in path.read_text()
