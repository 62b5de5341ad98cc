"""Files of a run folder that say something else, with sums that fit: the checkpoint is skipped, the run goes on."""

import hashlib
import json

import pytest
import torch

from fedddp.checkpoints.durable import write_tensors
from fedddp.checkpoints.run_folder import RunFolder
from fedddp.checkpoints.saved import candidates, newest
from fedddp.telemetry.files import NEEDED, rewind

STATE = {"round": 2, "num_trainable": 3, "test_accuracy": 0.5, "config": {}, "inputs": None, "tensors": [["w", [3]]]}


def checkpoint(run, round, state=None, **tensors):
    folder = run / f"checkpoints/round-{round:06d}"
    folder.mkdir(parents=True)
    write_tensors(folder / "server.safetensors", tensors or {"w": torch.zeros(3)})
    content = json.dumps({**STATE, "round": round}) if state is None else state
    (folder / "state.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(sums))
    return folder


VALUES = ["null", "-1", "[]", "{}", '"x"', "NaN", "1e400", "true", "[[1, 2]]", "18446744073709551616"]
FINE = {("tensors", "[]"), ("tensors", "null"), ("inputs", "null"), ("inputs", "{}"), ("config", "{}")}
FINE |= {("test_accuracy", "null"), ("test_accuracy", "-1"), ("test_accuracy", "18446744073709551616")}
FINE |= {("test_accuracy", "NaN"), ("test_accuracy", "1e400")}
MUTATED = [(key, value) for key in STATE for value in VALUES if (key, value) not in FINE]


@pytest.mark.parametrize(("key", "value"), MUTATED)
def test_a_state_of_another_form_is_damage(key, value, tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, json.dumps({**STATE, key: "@"}).replace('"@"', value))
    found = newest(tmp_path)
    assert found is not None
    assert found.round == 1
    assert candidates(tmp_path, 2)


@pytest.mark.parametrize("state", [b"", b"\xff\xfe", b"[]", b"null", b"1", b"[" * 10**5, b'{"round": 2}'])
def test_a_state_that_is_none_is_damage(state, tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, state)
    assert newest(tmp_path).round == 1
    assert candidates(tmp_path, 2)


@pytest.mark.parametrize(
    "tensors", [{"v": torch.zeros(3)}, {"w": torch.zeros(1, 3)}, {"w": torch.zeros(2)}, {"w": torch.tensor(1.0)}]
)
def test_a_server_state_without_a_vector_is_damage(tensors, tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, **tensors)
    assert newest(tmp_path).round == 1


@pytest.mark.parametrize("manifest", [b"[]", b"null", b"{}", b"1", b"[" * 10**5, b'{"state.json": null}'])
def test_a_manifest_of_another_form_is_damage(manifest, tmp_path):
    checkpoint(tmp_path, 1)
    (checkpoint(tmp_path, 2) / "manifest.json").write_bytes(manifest)
    assert newest(tmp_path).round == 1


@pytest.mark.parametrize(
    "line", [b"1", b"[]", b"{}", b"null", b"\xff\xfe", b'{"round": []}', b"[" * 10**5, b'{"round": 2']
)
def test_a_line_that_is_none_of_metrics_costs_no_other_line(line, tmp_path):
    first, second = ({"round": t} | dict.fromkeys(NEEDED) for t in (1, 2))
    (tmp_path / "metrics.jsonl").write_bytes(
        json.dumps(first).encode() + b"\n" + line + b"\n" + json.dumps(second).encode()
    )
    assert rewind(RunFolder(tmp_path, resumed=True), 2) == [first, second]
