"""launch/setup.sh decides well which torch to ask pip for, and leaves alone what it did not make.

Nothing is installed here: the environment holds a stand-in for Python that answers for pip and writes down its calls.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "launch" / "setup.sh"
ONLY_CUDA = "Available versions: 2.15.0, 2.13.0, 2.9.0"

FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"pip index versions torch"*) echo "torch (2.15.0)"; echo "$FAKE_VERSIONS" ;;
    *"pip install"*) echo "${@:3}" >>"$FAKE_CALLS"; exit "${FAKE_PIP_STATUS:-0}" ;;
    *'version("torch")'*) [[ -n ${FAKE_INSTALLED:-} ]] && echo "$FAKE_INSTALLED" ;;
    *"import sys"*) echo 3.11 ;;
    *"import torchvision"*) echo "${FAKE_TORCHVISION:-}" >&2; [[ -z ${FAKE_TORCHVISION:-} ]] ;;
    *"import platform"*) echo "ready: on CPU" ;;
    *) echo "not expected: $*" >&2; exit 1 ;;
esac
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Machine:
    """A folder with an environment and an nvidia-smi of our making."""

    def __init__(self, folder: Path):
        self.venv, self.calls, self.bin = folder / "env", folder / "calls", folder / "bin"
        script(self.venv / "bin" / "python", FAKE_PYTHON)
        self.gpu(False)

    def gpu(self, works: bool) -> None:
        script(self.bin / "nvidia-smi", f"#!/bin/sh\nexit {int(not works)}\n")

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "TORCH")}
        ours = {"PATH": f"{self.bin}:{os.environ['PATH']}", "VENV": str(self.venv), "FAKE_CALLS": str(self.calls)}
        return subprocess.run(
            ["bash", str(SETUP)], env=inherited | ours | environment, capture_output=True, text=True, timeout=60
        )

    def asked(self) -> list[list[str]]:
        """What followed `-e CHECKOUT[dev]` in each call of pip install: the requirements on torch."""
        calls = [line.split() for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
        for call in calls:
            assert call[:3] == ["install", "-q", "-e"]
            assert call[3] == f"{SETUP.parents[1]}[dev]"
        return [call[4:] for call in calls]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


def test_without_gpu_the_newest_cpu_build_on_offer_is_taken(machine):
    result = machine.setup(FAKE_VERSIONS="Available versions: 2.15.0, 2.9.1+cpu, 2.10.0+cpu, 2.10.0, 2.8.0+cpu")
    assert result.returncode == 0, result.stderr
    assert machine.asked() == [["torch==2.10.0+cpu"]]
    assert "several GB" not in result.stderr


@pytest.mark.parametrize("offer", [ONLY_CUDA, "Available versions: 2.15.0, 2.8.0+cpu", ""])
def test_without_a_cpu_build_that_will_do_the_size_is_announced(machine, offer):
    result = machine.setup(FAKE_VERSIONS=offer)
    assert result.returncode == 0, result.stderr
    assert machine.asked() == [[]]
    assert ("several GB" in result.stderr) == (sys.platform == "linux")


def test_with_a_gpu_torch_is_not_held_back(machine):
    machine.gpu(True)
    result = machine.setup(FAKE_VERSIONS="Available versions: 2.15.0, 2.13.0+cpu")
    assert machine.asked() == [[]]
    assert "this torch cannot use it" in result.stderr  # the stand-in reports CPU


@pytest.mark.parametrize("gpu", [False, True])
def test_torch_given_by_the_user_wins(machine, gpu):
    machine.gpu(gpu)
    machine.setup(TORCH="torch==2.9.1 torchvision==0.24.1", FAKE_INSTALLED="2.13.0+cpu")
    assert machine.asked() == [["torch==2.9.1", "torchvision==0.24.1"]]


def test_torch_already_there_is_kept(machine):
    machine.setup(FAKE_INSTALLED="2.12.0", FAKE_VERSIONS="Available versions: 2.13.0+cpu")
    assert machine.asked() == [["torch==2.12.0"]]


def test_a_second_run_does_nothing_until_something_changes(machine):
    for _ in range(3):
        assert machine.setup(FAKE_VERSIONS=ONLY_CUDA).returncode == 0
    assert len(machine.asked()) == 1
    machine.setup(TORCH="torch==2.9.1")
    assert machine.asked()[1:] == [["torch==2.9.1"]]


def test_a_failed_install_is_tried_again(machine):
    assert machine.setup(FAKE_VERSIONS=ONLY_CUDA, FAKE_PIP_STATUS="3").returncode == 3
    assert machine.setup(FAKE_VERSIONS=ONLY_CUDA).returncode == 0
    assert len(machine.asked()) == 2


def test_a_folder_that_is_no_environment_is_not_touched(machine, tmp_path):
    precious = tmp_path / "precious" / "file"
    script(precious, "mine")
    result = machine.setup(VENV=str(precious.parent))
    assert result.returncode == 1
    assert "name another in VENV" in result.stderr
    assert precious.read_text() == "mine"


def test_a_python_that_does_not_run_is_refused(machine, tmp_path):
    script(tmp_path / "shim", "#!/bin/sh\nexit 127\n")
    result = machine.setup(VENV=str(tmp_path / "new"), PYTHON=str(tmp_path / "shim"))
    assert result.returncode == 1
    assert "found no Python 3.11 to 3.13" in result.stderr


@pytest.mark.parametrize(
    "fault",
    [
        "RuntimeError: operator torchvision::nms does not exist",
        "Traceback (most recent call last):\nImportError: libcudart.so.12: cannot open shared object file",
        "ModuleNotFoundError: No module named 'PIL'",
    ],
)
def test_a_torchvision_that_cannot_be_imported_is_said(machine, fault):
    result = machine.setup(FAKE_TORCHVISION=fault)
    assert result.returncode == 0
    assert f"setup: but 'import torchvision' fails ({fault.splitlines()[-1]})" in result.stderr
    assert "torchvision" not in machine.setup(TORCH="torch==2.9.1").stderr
