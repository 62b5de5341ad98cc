"""Read and write divided data: a folder per client and a public one, so that a rank needs no other client's files.

    parts/public/manifest.json                 what everybody may know: see `Public`
    parts/public/test.safetensors              x [n, C, H, W], y [n]: the test set
    parts/client-00003/train.safetensors       x [n, C, H, W], y [n]: the examples of client 3, and of nobody else

`fedddp split` writes it from a whole dataset. ``data.name=parts`` reads it: a rank opens the folders of the clients
that live on it and the public one; the others' need not exist. Public are the SIZES of the clients, how they were
dealt out, the SHA-256 sums of their files, and of real targets the mean and deviation over all clients; nobody's
labels. A client's file carries a random salt in its header, so that its sum cannot confirm a guess of what is in it.
(Whoever has the whole dataset and the public folder can deal it out again: for data that are public anyway, such as
MNIST, this shows the mechanism and protects nothing.)
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import named
from ..registry.choice import read_file
from .datasets import Dataset, Examples
from .partition import Excerpt, Ints, Partition
from .several import Layout
from .targets import TARGETS

PUBLIC = "public"
MANIFEST = f"{PUBLIC}/manifest.json"
TEST = f"{PUBLIC}/test.safetensors"
FORMAT = 1
ADDED = ("targets", "vocabulary", "target_mean", "target_std", "layout")
"""Entries that manifests of earlier versions do not have."""


def train_file(client: int) -> str:
    """Where the examples of ``client`` lie, below the root."""
    return f"client-{client:05d}/train.safetensors"


@dataclass(frozen=True)
class Public:
    """The manifest: what every rank knows of all the clients.

    ``sizes [N]`` are the examples of each client, ``shape`` and ``dtype`` those of one input, ``mean`` and ``std`` a
    channel's, ``partition`` (a table as in a configuration) and ``seed`` how ``data`` was dealt out, ``sha256`` the
    sums of all files by path below the root.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    data: str
    num_classes: Annotated[int, Field(ge=1, le=2**31)]
    shape: tuple[Annotated[int, Field(ge=1, le=2**31)], ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    partition: dict[str, Any]
    seed: int
    sizes: Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(min_length=1)]
    sha256: dict[str, str]
    format: int = FORMAT
    targets: Literal["class", "real", "labels", "positions"] = "class"
    vocabulary: int | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype {self.dtype!r} is none of torch's")
        channels = {1, *self.shape[:1]}
        if len(self.mean) != len(self.std) or len(self.mean) not in channels:
            raise ValueError(f"mean and std have {len(self.mean)} and {len(self.std)} numbers for inputs {self.shape}")

    @property
    def num_clients(self) -> int:
        return len(self.sizes)

    def digest(self) -> str:
        """One sum over everything, the test set and every client's file by their sums; equal on all ranks of a run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Divided(Partition):
    """A partition as one rank sees it: ranges into its own clients' examples, of the others nothing but the sizes.

    ``order [n]`` counts the n examples of this rank through; ``starts`` of clients elsewhere is n, where nothing is.
    """

    public: Public

    @property
    def overlaps(self) -> bool:
        """False: whether two parties' folders hold the same example cannot be known."""
        return False

    def excerpt(self, labels: Ints | None, num_classes: int, most: int = 60) -> Excerpt:
        """The sizes alone, ``counts [k, 1]``: which labels the others own stays with them."""
        clients = self._spread(most)
        return Excerpt(clients, self.sizes[clients, None], self.num_clients, by_label=False)

    def fingerprint(self, labels: Ints) -> str:
        """From what is public: a rank cannot hash labels that it does not have."""
        return self.public.digest()


class Parts:
    """Data divided by ``fedddp split``. Every method raises ValueError with the remedy, in one line."""

    def __call__(self, root: Path, download: bool, targets: str = "class") -> Dataset:
        """Everybody's examples, where all the folders are."""
        return self.divided(root, 0, 1)[0]

    def public(self, root: Path) -> Public:
        """The manifest, without looking at any example."""
        path = root / MANIFEST
        try:
            table = json.loads(_read(root, MANIFEST))
            if table.get("format") != FORMAT:
                raise ValueError(f"its format is {table.get('format')!r}, this version reads {FORMAT}")
            known: dict[str, Any] = {
                f.name: table[f.name] for f in fields(Public) if f.name in table or f.name not in ADDED
            }
            public = TypeAdapter(Public).validate_json(json.dumps(known))
            if len(public.sha256) != public.num_clients + 1:
                raise ValueError(f"has {len(public.sha256)} sums for {public.num_clients} clients and the test set")
            return public
        except ValidationError as error:
            first = error.errors()[0]
            where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{path}: is not a manifest of fedddp split ({where or 'it'}: {what})") from None
        except (json.JSONDecodeError, RecursionError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: is not a manifest of fedddp split ({type(error).__name__}: {error})") from None
        except _Unreadable:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def divided(self, root: Path, rank: int, world_size: int) -> tuple[Dataset, Divided]:
        """The examples of the clients that live on ``rank`` of ``world_size`` (client k on rank k mod R), who owns
        them, and the test set. Opens these clients' files and the public ones."""
        public = self.public(root)
        if public.num_clients < world_size:
            raise ValueError(
                f"data.root={str(root)!r}: is divided among {public.num_clients} clients, there are {world_size} "
                f"ranks; start at most {public.num_clients}, or divide it again with "
                f"--data.partition.num_clients={world_size}"
            )
        own = np.arange(rank, public.num_clients, world_size)
        held = [_examples(root, train_file(k), public, public.sizes[k]) for k in own.tolist()]
        train = Examples(torch.cat([e.x for e in held]), torch.cat([e.y for e in held]))
        sizes = np.array(public.sizes, dtype=np.int64)
        starts = np.full(public.num_clients, len(train))
        starts[own] = np.cumsum(sizes[own]) - sizes[own]
        test = _examples(root, TEST, public)
        with named(f"data.root={str(root)!r}"):
            added = {name: getattr(public, name) for name in ADDED}
            dataset = Dataset(train, test, public.num_classes, public.mean, public.std, **added)
        return dataset, Divided(np.arange(len(train)), starts, sizes, public)


def write(
    root: Path, dataset: Dataset, partition: Partition, *, data: str, table: Mapping[str, Any], seed: int
) -> Public:
    """Write ``dataset``, divided as ``partition`` says, below ``root``: a new or an empty folder. The manifest is last.

    A client's folder and file are made for its owner's eyes (modes 0700 and 0600). Raises ValueError for a folder with
    something in it.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"--out={root}: exists and is not an empty folder; choose a new one")
    train, sums = dataset.train, {}
    for k in range(partition.num_clients):
        rows = torch.from_numpy(partition.indices(k)).long()
        (root / train_file(k)).parent.mkdir(mode=0o700, parents=True)
        path, salt = root / train_file(k), os.urandom(16).hex()
        sums[train_file(k)] = _write(path, train.x[rows], train.y[rows], mode=0o600, salt=salt)
    (root / PUBLIC).mkdir()
    sums[TEST] = _write(root / TEST, dataset.test.x, dataset.test.y)
    added: dict[str, Any] = {name: getattr(dataset, name) for name in ADDED}
    added["vocabulary"] = dataset.num_tokens or None  # a rank that counts its own clients' might build another model
    public = Public(
        data=data,
        num_classes=dataset.num_classes,
        shape=tuple(train.x.shape[1:]),
        dtype=_name(train.x),
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        partition=dict(table),
        seed=seed,
        sizes=tuple(partition.sizes.tolist()),
        sha256=sums,
        **added,
    )
    (root / MANIFEST).write_text(json.dumps(asdict(public), indent=1) + "\n", encoding="utf-8")
    return public


def _write(path: Path, x: Tensor, y: Tensor, *, mode: int = 0o644, **header: str) -> str:
    content = save({"x": x.contiguous(), "y": y.contiguous()}, metadata=header or None)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def _examples(root: Path, name: str, public: Public, size: int | None = None) -> Examples:
    """One file's examples, after its sum has been compared. Read by Python, so that an audit hook sees every open."""
    content, path = _read(root, name), root / name
    if hashlib.sha256(content).hexdigest() != public.sha256.get(name):
        raise ValueError(f"{path}: its SHA-256 is not the one in {root / MANIFEST}; copy both from the same division")
    try:
        tensors = load(content)
        x, y = tensors["x"], tensors["y"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: does not hold x and y as safetensors ({error})") from None
    fits = x.dim() > 0 and y.dim() > 0 and tuple(x.shape[1:]) == public.shape and _name(x) == public.dtype
    if not fits or len(x) != len(y) or (size is not None and len(y) != size):
        raise ValueError(
            f"{path}: x is {_name(x)} {list(x.shape)}, y is {_name(y)} {list(y.shape)}; the manifest says "
            f"{len(y) if size is None else size} examples of {public.dtype} {list(public.shape)}"
        )
    kind = TARGETS[public.targets]
    if len(y) and not kind.fits(y, public.num_classes):
        raise ValueError(
            f"{path}: y is {_name(y)} {list(y.shape)}; expected {kind.words}, {public.num_classes} of them"
        )
    return Examples(x, y)


class _Unreadable(ValueError):
    """A file that is not there or may not be read."""


def _read(root: Path, name: str) -> bytes:
    try:
        return read_file(root / name)
    except OSError as error:
        needs = "a rank needs public/ and the folders of its own clients (client k on rank k mod ranks)"
        remedy = "copy the folder here, or divide a dataset with fedddp split"
        raise _Unreadable(
            f"data.root={str(root)!r}: {name} cannot be read ({error.strerror}); {needs}: {remedy}"
        ) from None


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
