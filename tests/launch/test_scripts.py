"""The launch scripts call fedddp and torchrun as they say. Stand-ins for programs print what they were given."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SHOW_CALL = f"""#!/usr/bin/env bash
[[ $1 == - ]] && exec {sys.executable} "$@"
echo "${{0##*/}} $*"
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
    given = {"NNODES": "2", "RDZV_ENDPOINT": "192.0.2.1:29400"}
    assert "threads 1\n" in launch("multi_node.sh", **given, NPROC="100000").stdout
    assert "threads 7\n" in launch("multi_node.sh", **given, OMP_NUM_THREADS="7").stdout


def test_multi_node_passes_the_rendezvous(launch):
    given = {"NNODES": "2", "NPROC": "8", "RDZV_ENDPOINT": "192.0.2.1:29400"}
    result = launch("multi_node.sh", "mine.toml", **given)
    lines = result.stdout.splitlines()
    assert lines[2] == "shared store off 1"
    assert lines[0] == (
        "torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=192.0.2.1:29400"
        " --rdzv_id=fedddp --rdzv_conf=is_host=0,join_timeout=600,read_timeout=600 -m fedddp.train mine.toml"
    )
    assert result.stderr == (
        "multi_node.sh: this machine does not hold the meeting point 192.0.2.1:29400; waiting up to 600 s"
        " for 2 machines\n"
    )
    named = launch("multi_node.sh", **given, RDZV_ID="b", IS_HOST="1", JOIN_TIMEOUT="60").stdout
    assert " --rdzv_id=b --rdzv_conf=is_host=1,join_timeout=60,read_timeout=60 -m " in named


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", socket.gethostname()])
def test_multi_node_finds_out_which_machine_holds_the_meeting_point(launch, host):
    result = launch("multi_node.sh", NNODES="2", NPROC="1", RDZV_ENDPOINT=f"{host}:29400")
    assert "--rdzv_conf=is_host=1," in result.stdout, result.stderr


def test_multi_node_refuses_a_host_without_an_address(launch):
    result = launch("multi_node.sh", NNODES="2", NPROC="1", RDZV_ENDPOINT="no-such-host.invalid:29400")
    assert result.returncode == 2
    assert result.stderr == "RDZV_ENDPOINT: no-such-host.invalid has no address here; write the address itself\n"


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
