"""Partitions given by the data's own owners, or by a file."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from ...registry.choice import UserPath, read_file
from ..datasets import Examples
from .base import Ints, Partition, Partitioner

LARGEST = 2**31
"""Bytes that an .npz file may unpack to: 130 million examples and clients."""


@dataclass(frozen=True)
class Natural(Partitioner):
    """By the owner of each example in the dataset (writers, speakers, hospitals); client k is the k-th.

    A dataset class says it by an attribute ``client_ids``, one number an example, beside ``data`` and ``targets``;
    owners are counted in the order of their numbers.
    """

    draws: ClassVar[bool] = False

    def deal(self, examples: Examples, seed: int) -> Partition:
        """See `Partitioner.deal`."""
        if examples.owner is None:
            raise ValueError(
                "data.partition.name='natural': this dataset does not say who owns its examples; use one whose class "
                "has the attribute client_ids, or another partition"
            )
        return self.split(examples.owner.numpy(), seed)

    def split(self, labels: Ints, seed: int) -> Partition:
        """``labels``: the owner of each example."""
        owners, sizes = np.unique(labels, return_counts=True)
        if len(owners) != self.num_clients:
            raise ValueError(
                f"data.partition.num_clients={self.num_clients}: the data have {len(owners)} owners; "
                f"set it to {len(owners)}"
            )
        return Partition.dealt(np.argsort(labels, kind="stable"), sizes)


@dataclass(frozen=True)
class FromFile(Partitioner):
    """From a file: .json holds a list of each client's example numbers; .csv has lines ``client,example``; .npz
    has ``order`` and ``sizes``, the example numbers client after client and how many each has.

    `fedddp show` writes such files. An example may have several owners, but no owner twice.
    """

    draws: ClassVar[bool] = False
    path: Annotated[str, UserPath, Field(description="the file, .json, .csv or .npz; see fedddp show --save")] = ""

    def population(self, world_size: int) -> int:
        """As many as the file has."""
        return self.num_clients or len(self._read()[1])

    def split(self, labels: Ints, seed: int) -> Partition:
        order, sizes = self._read()
        if self.num_clients and len(sizes) != self.num_clients:
            raise ValueError(
                f"data.partition.num_clients={self.num_clients}: {self.path} has {len(sizes)} clients; leave it out"
            )
        partition = Partition.dealt(order, sizes)
        try:
            partition.check(len(labels))
        except ValueError as error:
            raise self._mistake(str(error)) from None
        return partition

    def _read(self) -> tuple[Ints, Ints]:
        """(order, sizes)."""
        if not self.path:
            raise ValueError("data.partition.path='': partition file needs one; write it with fedddp show --save=FILE")
        _checked_ending(f"data.partition.path={self.path!r}", self.path)
        try:
            order, sizes = READERS[Path(self.path).suffix](read_file(Path(self.path)))
        except OSError as error:
            raise self._mistake(f"cannot be read ({error.strerror or error}); name an existing file") from None
        except Exception as error:
            raise self._mistake(f"is not a partition ({error}); see docs/partitions.md for the three formats") from None
        if not len(sizes):
            raise self._mistake("has no clients; list one or more")
        if sizes.min() < 1:
            raise self._mistake(f"client {int(sizes.argmin())} has no examples; leave it out")
        return order, sizes

    def _mistake(self, reason: str) -> ValueError:
        return ValueError(f"data.partition.path={self.path!r}: {reason}")


def given(clients: Partition | Sequence[Any], examples: int) -> Partition:
    """The partition that a caller gives: for each client its example numbers, or a mask [n] of bools over all examples.

    Raises ValueError for anything else, and for examples that do not exist or that a client has twice.
    """
    if not isinstance(clients, Partition):
        hands = [_hand(own, k, examples) for k, own in enumerate(clients)]
        clients = Partition.dealt(
            np.concatenate([*hands, np.zeros(0, np.int64)]), np.array([len(own) for own in hands])
        )
    clients.check(examples)
    return clients


def _hand(own: Any, client: int, examples: int) -> Ints:
    """One client's example numbers."""
    try:
        numbers = np.asarray(own)
    except ValueError:
        numbers = np.asarray(own, dtype=object)
    if numbers.ndim == 1 and not len(numbers):
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iub":
        raise ValueError(
            f"client {client} has {numbers.dtype} {list(numbers.shape)}; give a list of example numbers, or a mask of "
            f"{examples} bools, for each client"
        )
    if numbers.dtype.kind != "b":
        return numbers.astype(np.int64)
    if len(numbers) != examples:
        raise ValueError(f"client {client} has a mask of {len(numbers)}, there are {examples} training examples")
    return np.flatnonzero(numbers)


def write_partition(path: Path, partition: Partition) -> None:
    """Write it in the format that the ending of ``path`` says. Raises ValueError for another ending."""
    _checked_ending(f"{path}", str(path))
    hands = [partition.indices(k).tolist() for k in range(partition.num_clients)]
    if path.suffix == ".npz":
        np.savez_compressed(path, order=partition.of(np.arange(partition.num_clients)), sizes=partition.sizes)
    elif path.suffix == ".json":
        path.write_text("[\n" + ",\n".join(json.dumps(own) for own in hands) + "\n]\n", encoding="utf-8")
    else:
        lines = [f"{client},{example}" for client, own in enumerate(hands) for example in own]
        path.write_text("\n".join(["client,example", *lines]) + "\n", encoding="utf-8")


def _checked_ending(what: str, path: str) -> None:
    if Path(path).suffix not in READERS:
        raise ValueError(f"{what}: should end in one of {', '.join(READERS)}")


def _from_json(content: bytes) -> tuple[Ints, Ints]:
    hands = json.loads(content.decode("utf-8-sig"))
    if not isinstance(hands, list) or not all(isinstance(own, list) for own in hands):
        raise ValueError("it should be a list of lists")
    flat = [i for own in hands for i in own]
    if not all(type(i) is int for i in flat):
        raise ValueError("the inner lists should hold whole numbers")
    return np.array(flat, dtype=np.int64), np.array([len(own) for own in hands], dtype=np.int64)


def _from_csv(content: bytes) -> tuple[Ints, Ints]:
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    if header != ["client", "example"]:
        raise ValueError(f"its first line should be client,example and is {','.join(header)}")
    pairs = np.array([[int(field) for field in row] for row in rows], dtype=np.int64).reshape(-1, 2)
    if (pairs[:, 0] < 0).any():
        raise ValueError("clients are numbered from 0")
    if pairs[:, 0].max(initial=0) >= max(1, len(pairs)):  # said before an array of that length is made
        gap = np.setdiff1d(np.arange(len(pairs)), pairs[:, 0])[0]
        raise ValueError(f"client {gap} has no examples, and there is a client {pairs[:, 0].max()}")
    by_client = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return by_client[:, 1], np.bincount(by_client[:, 0])


def _from_npz(content: bytes) -> tuple[Ints, Ints]:
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        unpacked = sum(member.file_size for member in members.infolist())
    if unpacked > LARGEST:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {LARGEST:,}")
    with np.load(io.BytesIO(content)) as arrays:
        order, sizes = arrays["order"], arrays["sizes"]
    if order.dtype.kind not in "iu" or sizes.dtype.kind not in "iu" or order.ndim != 1 or sizes.ndim != 1:
        raise ValueError("order and sizes should be one-dimensional whole numbers")
    total = sum(sizes.tolist())  # of Python's numbers, which do not wrap
    if len(order) != total or (sizes > len(order)).any():
        raise ValueError(f"sizes sum to {total}, order has {len(order)}")
    if len(order) and int(order.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"example {order.max()} does not exist")
    return order.astype(np.int64), sizes.astype(np.int64)


READERS: dict[str, Callable[[bytes], tuple[Ints, Ints]]] = {".json": _from_json, ".csv": _from_csv, ".npz": _from_npz}
