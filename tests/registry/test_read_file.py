"""A FIFO, a device or a folder where a file is expected: one line, and nobody waits for its content."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedddp.config import read_toml
from fedddp.data import load
from fedddp.data.partition import FromFile
from fedddp.data.parts import MANIFEST, Parts
from fedddp.errors import UsageError
from fedddp.models.weights import Weights
from fedddp.secure import Identity, Roster

KINDS = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to(os.devnull),
    "link to a FIFO": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path),
}
PLACES = {
    "run.toml": read_toml,
    "model.safetensors": lambda path: Weights.read(path, "model.weights"),
    "partition.json": lambda path: FromFile(path=str(path)).split(np.zeros(3, dtype=int), 0),
    "partition.csv": lambda path: FromFile(path=str(path)).split(np.zeros(3, dtype=int), 0),
    "partition.npz": lambda path: FromFile(path=str(path)).split(np.zeros(3, dtype=int), 0),
    MANIFEST: lambda path: Parts().public(path.parents[1]),
    "MNIST/raw/train-images-idx3-ubyte": lambda path: load("mnist", path.parents[2], False, {}),
    "roster.toml": Roster.load,
    "rank-0.key": Identity.load,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_one_line(name, kind, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)
    with pytest.raises(ValueError, match=r"[Rr]egular file|directory|symbolic links") as refused:
        PLACES[name](path)
    assert str(path) in str(refused.value) or name in str(refused.value) or "model.weights" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_pipe_of_a_shells_command_is_read():
    command = f"{sys.executable} -m fedddp.train <(echo '[run]'; echo 'rounds = 7') --print-config"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert "rounds = 7" in said.stdout


def test_weights_that_are_no_file_name_their_key(tmp_path):
    os.mkfifo(tmp_path / "w")
    with pytest.raises(UsageError) as refused:
        Weights.read(tmp_path / "w", f"model.weights={str(tmp_path / 'w')!r}")
    assert refused.value.key == "model.weights"
