"""The launch scripts call fedddp and torchrun as they say. Stand-ins for programs print what they were given."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SHOW_CALL = """#!/usr/bin/env bash
echo "${0##*/} $*"
echo "threads $OMP_NUM_THREADS"
echo "shared store off $TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
echo "folder $PWD"
"""


@pytest.fixture
def launch(tmp_path: Path):
    """launch(script, *arguments, **environment) runs a script, from a folder that is not the checkout."""
    programs = dict.fromkeys(("torchrun", "python"), SHOW_CALL) | {"nvidia-smi": "#!/bin/sh\nexit 1\n"}
    for name, text in programs.items():
        path = tmp_path / "env" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    ours = ("NPROC", "NNODES", "RDZV_ENDPOINT", "RDZV_ID", "IS_HOST", "LOGDIR", "OMP_NUM_THREADS")
    inherited = {key: value for key, value in os.environ.items() if key not in ours}

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LAUNCH / name), *arguments],
            env=inherited | {"VENV": str(tmp_path / "env")} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_quickstart_starts_four_ranks_where_the_user_stands(launch, tmp_path):
    lines = launch("quickstart.sh", "mine.toml", "--run.name=two words").stdout.splitlines()
    assert lines[0] == "python -m fedddp launch --ranks=4 mine.toml --run.name=two words"
    assert lines[-1] == f"folder {tmp_path}"


@pytest.mark.parametrize(("environment", "ranks"), [({}, ""), ({"NPROC": "3"}, "--ranks=3 ")])
def test_single_node_takes_the_number_of_ranks_from_the_user(launch, environment, ranks):
    assert f"python -m fedddp launch {ranks}--x=1\n" in launch("single_node.sh", "--x=1", **environment).stdout


def test_threads_are_a_share_of_the_cores_unless_given(launch):
    given = {"NNODES": "2", "RDZV_ENDPOINT": "first:29400"}
    assert "threads 1\n" in launch("multi_node.sh", **given, NPROC="100000").stdout
    assert "threads 7\n" in launch("multi_node.sh", **given, OMP_NUM_THREADS="7").stdout


def test_multi_node_passes_the_rendezvous(launch):
    given = {"NNODES": "2", "NPROC": "8", "RDZV_ENDPOINT": "first:29400"}
    lines = launch("multi_node.sh", "mine.toml", **given).stdout.splitlines()
    assert lines[2] == "shared store off 1"
    assert lines[0] == (
        "torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=first:29400"
        " --rdzv_id=fedddp -m fedddp.train mine.toml"
    )
    assert " --rdzv_id=b --rdzv_conf=is_host=0 -m " in launch("multi_node.sh", **given, RDZV_ID="b", IS_HOST="0").stdout


def test_multi_node_says_what_is_missing(launch):
    result = launch("multi_node.sh", NNODES="2")
    assert result.returncode == 1
    assert "RDZV_ENDPOINT" in result.stderr


@pytest.mark.parametrize("name", ["quickstart.sh", "single_node.sh", "multi_node.sh"])
def test_help_explains_the_script_and_then_the_program(launch, name):
    result = launch(name, "--help")
    assert result.returncode == 0
    assert "  NPROC" in result.stdout
    assert "python -m fedddp train --help" in result.stdout


def test_tensorboard_shows_the_runs_here(launch):
    assert launch("tensorboard.sh", "--port=1").stdout.startswith("python -m fedddp tensorboard runs --port=1\n")
