"""launch/party.sh: parties that start by themselves, each with its own data, and without torchrun."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.commands import command

keygen = command("keygen")
split = command("split")


PARTY = Path(__file__).parents[2] / "launch" / "party.sh"
WORDS = ["--model.name=mlp", "--model.hidden=16", "--run.rounds=2", "--run.threads=1", "--telemetry.tensorboard=false"]
OURS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PARTS", "ROSTER", "KEY", "INTERFACE", "COMMAND")


@pytest.fixture
def machines(tmp_path, capsys):
    """Three folders, as three machines: each with the public part and its own client's, and its own key."""
    whole = tmp_path / "whole"
    data = ["--data.name=synthetic", "--data.args={num_train=240, num_test=60}", "--data.partition.num_clients=3"]
    assert split([f"--out={whole / 'parts'}", *data]) == 0
    assert keygen(["--parties", "3", "--out", str(whole / "keys")]) == 0
    for rank in range(3):
        machine = tmp_path / f"machine-{rank}"
        for part in ("public", f"client-0000{rank}"):
            shutil.copytree(whole / "parts" / part, machine / "parts" / part)
        for file in ("roster.toml", f"rank-{rank}.key"):
            shutil.copy(whole / "keys" / file, machine)
    shutil.rmtree(whole)
    return [tmp_path / f"machine-{rank}" for rank in range(3)]


@pytest.fixture
def start(program, machines):
    """start(*arguments, ranks=..., **environment): parties, each on its machine; (exit code, output) of each."""
    (bin_folder := machines[0].parent / "env" / "bin").mkdir(parents=True)
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_folder / "python").chmod(0o755)

    def run(*arguments: str, ranks: Sequence[int] = (0, 1, 2), **environment: str) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        base = {key: value for key, value in os.environ.items() if key not in OURS} | {"VENV": str(bin_folder.parent)}
        started = []
        for rank in ranks:
            where = {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            here = {key: value.replace("{rank}", str(rank)) for key, value in environment.items()}
            env = base | where | {"PARTS": "parts"} | here
            started.append(program([str(PARTY), *WORDS, *arguments], env, machines[rank]))
        outputs = [process.communicate(timeout=90)[0] for process in started]
        return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]

    return run


@pytest.mark.parametrize("protected", [False, True])
def test_three_parties_train_on_what_each_holds(start, machines, protected):
    keys = {"ROSTER": "roster.toml", "KEY": "rank-{rank}.key"} if protected else {}
    ended = start(**keys)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    summary = json.loads((machines[0] / "runs" / "fedavg-parts-mlp" / "summary.json").read_text())
    assert (summary["rounds"], summary["num_clients"], summary["world_size"]) == (2, 3, 3)
    assert not (machines[1] / "runs").exists()


def test_a_party_with_the_wrong_folder_says_so_and_nobody_hangs(start, machines):
    (machines[1] / "parts" / "client-00001").rename(machines[1] / "parts" / "client-00002")
    ended = start("--run.timeout=3")
    code, output = ended[1]
    assert (code, output.count("\n")) == (2, 1)
    assert "client-00001/train.safetensors cannot be read" in output
    for code, output in (ended[0], ended[2]):
        assert code == 1
        assert "rank 1 never came" in output or "store is gone" in output or "cannot be reached" in output


def test_the_doctor_looks_before(start):
    [(code, output)] = start(ranks=[1], COMMAND="doctor", ROSTER="roster.toml", KEY="rank-{rank}.key")
    assert code in (0, 1)  # gloo on loopback cannot span hosts: it depends on what this machine's name resolves to
    assert "key of rank 1" in output
    assert "only its owner can read it" in " ".join(output.split())
    assert "1 of 3 clients' folders" in " ".join(output.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    ("given", "missing"),
    [({}, "RANK"), ({"RANK": "0"}, "WORLD_SIZE"), ({"RANK": "0", "WORLD_SIZE": "3"}, "MASTER_ADDR")],
)
def test_it_says_what_is_missing(given, missing):
    environment = {key: value for key, value in os.environ.items() if key not in OURS} | given
    result = subprocess.run([str(PARTY)], env=environment, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert f"{missing}: is not set" in result.stderr


def test_a_key_without_a_roster_is_refused():
    given = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "KEY": "rank-0.key"}
    environment = {key: value for key, value in os.environ.items() if key not in OURS} | given
    result = subprocess.run([str(PARTY)], env=environment, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert "ROSTER: is not set, but KEY is" in result.stderr
