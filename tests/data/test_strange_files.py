"""Files that are not what they should be: partitions, manifests, arguments of synthetic data. One line each."""

import hashlib
import json
import resource
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fedddp.data import DATASETS
from fedddp.data.datasets import load
from fedddp.data.partition import FromFile, Partition
from fedddp.data.parts import MANIFEST, Parts, write

LABELS = np.arange(9) % 3


def npz(**arrays):
    return lambda path: np.savez_compressed(path, **arrays)


def bomb(path):
    """A small file that unpacks to 2.2 GB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name in ("order.npy", "sizes.npy"):
            with file.open(name, "w", force_zip64=True) as member:
                for _ in range(33):
                    member.write(bytes(2**25))


def text(content):
    return lambda path: path.write_text(content)


NINE = np.arange(9)
FILES = {
    "a client's number beyond memory.csv": text("client,example\n1000000000,1\n"),
    "a client's number beyond 64 bits.csv": text("client,example\n99999999999999999999,1\n"),
    "a negative client.csv": text("client,example\n-1,1\n"),
    "a gap.csv": text("client,example\n0,1\n2,2\n2,3\n"),
    "three columns.csv": text("client,example\n0,1,2\n"),
    "no line.csv": text(""),
    "a NUL.csv": text("client,example\n0,\0\n"),
    "an example that does not exist.csv": text("client,example\n0,9\n"),
    "an example beyond 64 bits.json": text("[[99999999999999999999]]"),
    "a negative example.json": text("[[0, -1]]"),
    "lists in lists.json": text("[" * 5000),
    "numbers.json": text("[1, 2]"),
    "an object.json": text("{}"),
    "NaN.json": text("[[NaN]]"),
    "sizes that wrap.npz": npz(order=NINE, sizes=np.array([2**62] * 3 + [2**62 + 9])),
    "sizes that wrap, unsigned.npz": npz(order=NINE, sizes=np.array([2**63, 2**63 + 9], dtype=np.uint64)),
    "a negative size.npz": npz(order=NINE, sizes=np.array([10, -1])),
    "no size.npz": npz(order=NINE),
    "no client.npz": npz(order=NINE[:0], sizes=NINE[:0]),
    "a table.npz": npz(order=NINE.reshape(3, 3), sizes=np.array([9])),
    "floats.npz": npz(order=NINE / 2, sizes=np.array([9])),
    "examples beyond int64.npz": npz(order=NINE.astype(np.uint64) + np.uint64(2**63), sizes=np.array([9])),
    "objects.npz": npz(order=np.array([None] * 9), sizes=np.array([9])),
    "a bomb.npz": bomb,
    "no zip.npz": text("order"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_strange_partition_is_one_line_and_takes_no_memory(case, tmp_path):
    path = tmp_path / f"p{case[case.rindex('.') :]}"
    FILES[case](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"^data\.partition\.path='") as refused:
        FromFile(path=str(path)).split(LABELS, 0)
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


@pytest.fixture
def parts(tmp_path):
    """A divided dataset; ``parts(key=value)`` reads it with these changes to its manifest."""
    dataset = DATASETS["synthetic"](None, False, num_train=9, num_test=3)
    partition = Partition.dealt(NINE, np.array([3, 3, 3]))
    write(tmp_path / "p", dataset, partition, data="synthetic", table={"name": "iid", "num_clients": 3}, seed=0)
    table = json.loads((tmp_path / "p" / MANIFEST).read_text())

    def read(**changes):
        (tmp_path / "p" / MANIFEST).write_text(json.dumps(table | changes))
        return Parts().divided(tmp_path / "p", 0, 1)

    read.root, read.sums = tmp_path / "p", table["sha256"]
    return read


def test_a_manifest_without_changes_is_read(parts):
    dataset, partition = parts()
    assert (len(dataset.train), partition.num_clients) == (9, 3)


MANIFESTS = [
    ("mean", [0.5, float("nan")]), ("mean", [[]]), ("mean", "nan"), ("mean", 2**31), ("mean", ["os:system"]),
    ("mean", []), ("mean", [0.1, 0.2]), ("mean", None), ("mean", [True]),
    ("std", "a" * 300), ("std", ["json:loads"]), ("std", []), ("std", [0.0]), ("std", [-1.0]), ("std", [float("inf")]),
    ("sizes", 1e308), ("sizes", {"name": 1}), ("sizes", []), ("sizes", [3, 3, -3]), ("sizes", [3, 3, 2**62]),
    ("sizes", [3.0, 3, 3]), ("sizes", [3, 3]), ("sizes", "333"), ("sizes", [2, 4, 3]),
    ("sha256", "\u00e9\u202e\0"), ("sha256", []), ("sha256", {"client-00000/train.safetensors": 3}), ("sha256", {}),
    ("num_classes", {}), ("num_classes", 0), ("num_classes", "10"), ("num_classes", 1.5), ("num_classes", 2**62),
    ("shape", [1, 28]), ("shape", [-1, 28, 28]), ("shape", 784), ("shape", ["1", 28, 28]), ("shape", [2**62, 1, 1]),
    ("dtype", "load"), ("dtype", 8), ("dtype", "float64"), ("partition", []), ("partition", None), ("seed", "zero"),
    ("data", 3), ("format", 2), ("format", None),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), MANIFESTS, ids=[f"{key}={value!s:.20}" for key, value in MANIFESTS])
def test_a_strange_manifest_is_one_line(parts, key, value):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parts(**{key: value})
    assert str(parts.root) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"\xff", b"[" * 5000, b'{"format": 1}', b"9" * 5000])
def test_what_is_no_manifest_is_one_line(parts, content):
    (parts.root / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Parts().public(parts.root)
    assert "\n" not in str(refused.value)


X, Y = torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
TENSORS = {
    "no axis": {"x": X[0, 0, 0, 0], "y": Y[0]},
    "labels in a table": {"x": X, "y": Y.view(3, 1)},
    "float labels": {"x": X, "y": Y.float()},
    "another shape": {"x": X[:, :, :27], "y": Y},
    "another type": {"x": X.float(), "y": Y},
    "no labels": {"x": X},
    "other names": {"a": X, "b": Y},
    "too few": {"x": X[:2], "y": Y[:2]},
    "a label too high": {"x": X, "y": Y + 10},
    "a negative label": {"x": X, "y": Y - 1},
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_strange_file_of_a_client_is_one_line(parts, case):
    path = parts.root / "client-00001/train.safetensors"
    content = save({name: tensor.contiguous() for name, tensor in TENSORS[case].items()})
    path.chmod(0o600)
    path.write_bytes(content)
    sums = parts.sums | {"client-00001/train.safetensors": hashlib.sha256(content).hexdigest()}
    with pytest.raises(ValueError, match="client-00001") as refused:
        parts(sha256=sums)
    assert "\n" not in str(refused.value)


ARGS = [
    ("num_train", "x"),
    ("num_train", -1),
    ("num_train", 0),
    ("num_train", 2.5),
    ("num_train", 10**9),
    ("num_test", 1e20),
    ("num_test", "\u00e9"),
    ("num_test", [1]),
    ("num_classes", 1),
    ("num_classes", 10**6),
    ("shape", []),
    ("shape", 28),
    ("shape", [1, 0, 28]),
    ("shape", [10**6] * 3),
    ("noise", float("nan")),
    ("noise", -1),
    ("noise", "loud"),
    ("seed", -1),
]


@pytest.mark.parametrize(("key", "value"), ARGS, ids=[f"{key}={value!s:.10}" for key, value in ARGS])
def test_strange_arguments_of_synthetic_data_are_one_line(key, value):
    with pytest.raises(ValueError, match=r"data\.args") as refused:
        load("synthetic", None, False, {key: value})
    assert "\n" not in str(refused.value)
