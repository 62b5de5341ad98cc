"""Datasets as tensors: images as uint8 until they are used, labels as int64.

`mnist-mini` is embedded in the package; MNIST, Fashion-MNIST, EMNIST and CIFAR-10 come through torchvision, in its
folder layout. A user's own class is named by import path and follows torchvision's convention.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rng import numpy_generator
from .torchvision_datasets import torchvision_class

DEFAULT_ROOT = "data"  # made when it is needed; another one that does not exist is taken for a slip of the pen


@dataclass(frozen=True)
class Examples:
    """``x [n, C, H, W]`` (uint8, or floating point as it is to be used), ``y [n]`` int64, and who made each, if known.

    ``owner [n]`` are any whole numbers, as many different ones as there are owners.
    """

    x: Tensor
    y: Tensor
    owner: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Examples:
        return Examples(self.x.to(device), self.y.to(device), self.owner)


@dataclass(frozen=True)
class Dataset:
    """Training and test examples; ``mean`` and ``std`` a channel, of pixels scaled to [0, 1]."""

    train: Examples
    test: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, examples in (("training", self.train), ("test", self.test)):
            if len(examples.x) != len(examples.y) or not len(examples):
                raise ValueError(f"the {part} set has {len(examples.x)} inputs and {len(examples.y)} labels")
            if examples.owner is not None and len(examples.owner) != len(examples.y):
                raise ValueError(f"the {part} set has {len(examples.y)} examples and {len(examples.owner)} client_ids")

    @classmethod
    def of(cls, train: Any, test: Any) -> Dataset:
        """Of two `Examples`, or (x, y) pairs of arrays, or objects that have ``data`` and ``targets`` or yield (x, y).

        Pixels are normalised by the training set's own mean and standard deviation; floating-point inputs are taken
        as they are. The classes are 0 to the largest label.
        """
        train, test = (_examples(part) for part in (train, test))
        num_classes = int(torch.cat([train.y, test.y]).max()) + 1
        by_channel = train.x if train.x.dim() > 2 else train.x.unsqueeze(1)
        if train.x.is_floating_point():
            channels = by_channel.shape[1]
            return cls(train, test, num_classes, (0.0,) * channels, (1.0,) * channels)
        dims = [d for d in range(by_channel.dim()) if d != 1]
        pixels = by_channel.double() / 255
        mean, std = pixels.mean(dims), pixels.std(dims).clamp(min=1e-6)
        return cls(train, test, num_classes, tuple(mean.tolist()), tuple(std.tolist()))


def mnist_mini(root: Path, download: bool) -> Dataset:
    """10,000 training and 2,000 test digits of the real MNIST, 1,000 and 200 a class, embedded in the package."""
    with resources.files("fedddp.data").joinpath("mnist_mini.npz").open("rb") as file, np.load(file) as arrays:
        parts = {k: torch.from_numpy(arrays[k]) for k in ("train_x", "train_y", "test_x", "test_y")}
    return Dataset(
        Examples(parts["train_x"].unsqueeze(1), parts["train_y"].long()),
        Examples(parts["test_x"].unsqueeze(1), parts["test_y"].long()),
        num_classes=10,
        mean=(0.1307,),
        std=(0.3081,),
    )


def synthetic(
    root: Path,
    download: bool,
    *,
    num_train: int = 2000,
    num_test: int = 500,
    num_classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    noise: float = 0.3,
    seed: int = 0,
) -> Dataset:
    """One random pattern a class plus noise: learnable in seconds, for tests and for measuring without data."""
    rng = numpy_generator(seed, "synthetic")
    patterns = rng.random((num_classes, *shape), dtype=np.float32)

    def draw(n: int) -> Examples:
        y = rng.integers(num_classes, size=n)
        x = patterns[y] + noise * rng.standard_normal((n, *shape), dtype=np.float32)
        return Examples(torch.from_numpy((255 * x.clip(0, 1)).astype(np.uint8)), torch.from_numpy(y))

    return Dataset(draw(num_train), draw(num_test), num_classes, mean=(0.5,) * shape[0], std=(0.3,) * shape[0])


@dataclass(frozen=True)
class TorchvisionImages:
    """A dataset of torchvision by class name, with the published mean and standard deviation of its pixels."""

    class_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transposed: bool = False  # EMNIST stores its images column by column

    def __call__(self, root: Path, download: bool, **args: Any) -> Dataset:
        key = f"data.name={self.class_name.lower()}"
        if not root.is_dir() and not (download and root == Path(DEFAULT_ROOT)):  # said before seconds of import
            how = "make the folder for a download" if download else "set data.download=true"
            raise ValueError(f"{key}: data.root={str(root)!r} does not exist; point it at the data, or {how}")
        train, test = _load_both(torchvision_class(self.class_name), root, download, key, args)
        if self.transposed:
            train, test = (Examples(e.x.transpose(-1, -2).contiguous(), e.y) for e in (train, test))
        return Dataset(train, test, int(train.y.max()) + 1, self.mean, self.std)


def emnist(root: Path, download: bool, *, split: str = "balanced") -> Dataset:
    """EMNIST (Cohen et al. 2017): ``split`` is balanced, byclass, bymerge, letters, digits or mnist."""
    return TorchvisionImages("EMNIST", (0.1736,), (0.3317,), transposed=True)(root, download, split=split)


def from_class(cls: Callable[..., Any], root: Path, download: bool, **args: Any) -> Dataset:
    """A user's class, called as torchvision's are: ``cls(root=..., train=..., download=..., **args)``.

    It has ``data`` and ``targets``, or yields (image, label) pairs (read once, at start); see `Dataset.of`. With
    ``client_ids``, one number an example, it also says who owns what (``data.partition.name=natural``).
    """
    return Dataset.of(*_load_both(cls, root, download, f"data.name={cls.__module__}:{cls.__qualname__}", args))


DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist-mini": mnist_mini,
    "mnist": TorchvisionImages("MNIST", (0.1307,), (0.3081,)),
    "fashion_mnist": TorchvisionImages("FashionMNIST", (0.2860,), (0.3530,)),
    "emnist": emnist,
    "cifar10": TorchvisionImages("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "synthetic": synthetic,
}


def _load_both(cls: Callable[..., Any], root: Path, download: bool, key: str, args: dict) -> tuple[Examples, Examples]:
    """Training and test set, downloaded if they are missing and may be."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            train, test = (
                _tensors(cls(root=str(root), train=train, download=False, **args)) for train in (True, False)
            )
        except (RuntimeError, FileNotFoundError) as missing:
            if not download:
                raise ValueError(
                    f"{key}: not found in data.root={str(root)!r} ({_first_line(missing)}); "
                    "point data.root at it, or set data.download=true"
                ) from missing
            with _turn(root):
                train, test = (_downloaded(cls, root, train, key, args) for train in (True, False))
    return train, test


def _downloaded(cls: Callable[..., Any], root: Path, train: bool, key: str, args: dict) -> Examples:
    try:
        return _tensors(cls(root=str(root), train=train, download=True, **args))
    except (RuntimeError, OSError) as failed:
        raise ValueError(
            f"{key}: not in data.root={str(root)!r}, and it could not be downloaded ({_first_line(failed)}); "
            "copy the files there in torchvision's layout, or use data.name=mnist-mini"
        ) from failed


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")


@contextlib.contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Several ranks of a host take turns, so that one downloads and the others find it. Leaves no empty folder."""
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".fedddp.lock").open("w")
    except OSError:  # a read-only root: the load says what is missing
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except ValueError:
            (root / ".fedddp.lock").unlink(missing_ok=True)
            for folder in (*sorted(root.rglob("*"), reverse=True), *([root] if made else [])):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _examples(part: Any) -> Examples:
    if isinstance(part, Examples):
        return part
    return _shaped(*map(torch.as_tensor, part)) if isinstance(part, tuple) else _tensors(part)


def _tensors(dataset: Any) -> Examples:
    """[n, C, H, W] and [n] from torchvision's ``data``/``targets``, or by iterating once."""
    if hasattr(dataset, "data") and hasattr(dataset, "targets"):
        x, y = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    else:
        pairs = [dataset[i] for i in range(len(dataset))]
        x, y = (
            torch.stack([torch.as_tensor(np.asarray(image)) for image, _ in pairs]),
            torch.tensor([t for _, t in pairs]),
        )
    owner = getattr(dataset, "client_ids", None)
    return _shaped(x, y, None if owner is None else torch.as_tensor(owner).long())


def _shaped(x: Tensor, y: Tensor, owner: Tensor | None = None) -> Examples:
    """Channels first, and one where there are none."""
    if x.dim() == 4 and x.dtype == torch.uint8 and x.shape[-1] in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dim() == 3 and x.dtype == torch.uint8:
        x = x.unsqueeze(1)
    return Examples(x, y.long(), owner)
