"""Construct a dataset class, and read a user's data as arrays: (x, y) pairs, or an object that is read once, at start.

Only an error of the constructor can mean that files are missing: FileNotFoundError, or RuntimeError in torchvision's
words. Then the download is tried, if it may be. Any other error is the class's own, or that of a damaged file.

What counts is what an object yields, ``dataset[i]``, transforms and all. ``data`` and ``targets`` are taken instead
where the object yields nothing, and where torchvision's own class without transforms yields just these. A random
transform is refused: it would be drawn once, for the whole run.
"""

import contextlib
import fcntl
import hashlib
import inspect
import io
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OWN_CODE, UsageError, first_line, raised
from ..rng import global_seed
from .inputs import as_inputs, channels_first
from .several import Layout, one, packed, several

IDX_BYTES = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # of a number, by the type in the header of MNIST's format
READ_AGAIN = 1000
"""So many examples are read again, evenly spread, or few of them several times: what is random in one of 100 shows."""
PATIENCE = 3.0
"""Seconds for it: a slow object has each of these examples read once more, at least."""
EXPECTED = "expected (input, label) pairs"
Pair = tuple[Tensor, Any, Layout | None]
"""An example's input and target; the layout of an input of several tensors."""


def check_call(cls: Any, args: Mapping[str, Any]) -> None:
    """Raise ValueError if ``cls`` does not take what `constructed` gives it."""
    try:
        for side in _sides(cls, args):
            inspect.signature(cls).bind(root="", download=False, **side)
    except TypeError as error:
        keys = f" and data.args ({', '.join(args)})" if args else ""
        raise UsageError(
            f"expected a class called with root, train (or split), download{keys} ({error})", code="dataset-arguments"
        ) from None


def constructed(cls: Callable[..., Any], root: Path, download: bool, args: Mapping[str, Any]) -> tuple[Any, Any]:
    """Training and test set, downloaded if they are missing and may be. Raises ValueError with one line."""
    train, test = _sides(cls, args)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return cls(root=str(root), download=False, **train), cls(root=str(root), download=False, **test)
        except OWN_CODE as error:
            if not _says_missing(error):
                raise UsageError(_broken(cls, root, error), code="dataset-raises") from error
            if not download:
                raise UsageError(
                    damage(cls, root)
                    or f"not found in data.root={str(root)!r} ({first_line(error)}); "
                    "point data.root at it, or set data.download=true",
                    code="dataset-missing",
                ) from error
        with _turn(root):
            return _downloaded(cls, root, train), _downloaded(cls, root, test)


def _sides(cls: Any, args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the training and of the test set: ``train``, or ``split`` where there is no ``train``.

    Raises:
        ValueError: ``split`` is given and not a pair.
    """
    try:
        known: Mapping[str, Any] = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        known = {}
    if "split" not in known or "train" in known:
        return {"train": True, **args}, {"train": False, **args}
    names = args.get("split", ("train", "test"))
    if not isinstance(names, list | tuple) or len(names) != 2:
        raise UsageError(
            f"data.args.split={names!r}: expected two names, of the training and of the test set, such as "
            '["train","test"]',
            code="dataset-arguments",
        )
    return {**args, "split": names[0]}, {**args, "split": names[1]}


def damage(cls: Any, root: Path) -> str | None:
    """The first file of a torchvision class below ``root`` that is not whole, and what to do about it; None if there is
    none: files of MNIST's format say how long they are, of those of CIFAR the class knows the MD5 sums."""
    for path in sorted((root / getattr(cls, "__name__", "") / "raw").glob("*-ubyte")):
        if found := _idx_damage(path):
            return f"{path} is damaged ({found}); remove it, or copy it again"
    lists = [getattr(cls, name, []) for name in ("train_list", "test_list")]
    for name, md5 in (pair for pairs in lists for pair in pairs):
        path = root / getattr(cls, "base_folder", "") / name
        if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
            return f"{path} is damaged (its MD5 sum is not {md5}); remove it, or copy it again"
    return None


def _downloaded(cls: Callable[..., Any], root: Path, side: Mapping[str, Any]) -> Any:
    try:
        return cls(root=str(root), download=True, **side)
    except (RuntimeError, OSError) as failed:
        raise UsageError(
            damage(cls, root)
            or f"not in data.root={str(root)!r}, and it could not be downloaded ({first_line(failed)}); "
            "copy the files there in torchvision's layout, or use data.name=mnist-mini",
            code="dataset-missing",
        ) from failed
    except OWN_CODE as error:
        raise UsageError(_broken(cls, root, error), code="dataset-raises") from error


def _says_missing(error: BaseException) -> bool:
    words = r"not found|not exist|not present|download"
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    )


def _broken(cls: Any, root: Path, error: BaseException) -> str:
    return damage(cls, root) or f"its constructor fails ({raised(error)}); correct the class or data.args"


def _idx_damage(path: Path) -> str:
    """What is wrong with a file of MNIST's format; empty if it is as long as its header says."""
    if not path.is_file():
        return "it is not a regular file"
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if len(magic) < 4:
            return f"it has {size} bytes"
        zero, kind, dims = int.from_bytes(magic[:2], "big"), magic[2], magic[3]
        if zero or kind not in IDX_BYTES or not 1 <= dims <= 3:
            return f"it begins with the bytes {magic.hex()}, which MNIST's format does not"
        shape = [int.from_bytes(file.read(4), "big") for _ in range(dims)]
    whole = 4 + 4 * dims + IDX_BYTES[kind] * math.prod(shape)
    return "" if size == whole else f"it has {size} bytes, its header says {whole}"


@contextlib.contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Several ranks of a host take turns, so that one downloads and the others find it. Leaves no empty folder."""
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".fedddp.lock").open("wb")
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


@dataclass(frozen=True)
class Source:
    """Inputs, labels of any kind, and what else an object says of itself."""

    x: Tensor
    y: Any
    owner: Any = None
    num_classes: Any = None
    layout: Layout | None = None
    """Of inputs of several tensors, which ``x`` holds as rows."""


def read(data: Any, part: str) -> Source:
    """Read ``data``, the ``part`` set. Raises ValueError with one line that says what is expected."""
    try:
        return _read(data, part)
    except UsageError:
        raise
    except OWN_CODE as error:  # of the object's own code
        raise UsageError(
            f"the {part} set cannot be read ({raised(error)}); {EXPECTED}", code="dataset-raises"
        ) from error


def _read(data: Any, part: str) -> Source:
    if isinstance(data, tuple):
        if len(data) != 2:
            raise UsageError(
                f"the {part} set is a tuple of {len(data)}; expected (inputs, labels)", code="dataset-pairs"
            )
        return _columns(*data, part)
    found = _columns(data.data, data.targets, part) if _is_columns(data, part) else _items(data, part)
    return replace(found, owner=getattr(data, "client_ids", None), num_classes=getattr(data, "num_classes", None))


def _columns(x: Any, y: Any, part: str) -> Source:
    if several(x, len(y) if hasattr(y, "__len__") else 0):
        rows, layout = packed(x, f"{part} inputs")
        return Source(rows, y, layout=layout)
    return Source(channels_first(as_inputs(x, f"{part} inputs")), y)


def _is_columns(data: Any, part: str) -> bool:
    """Whether ``data`` and ``targets`` are all that there is to read."""
    if not (hasattr(data, "data") and hasattr(data, "targets")):
        return False
    transformed = any(getattr(data, name, None) is not None for name in ("transform", "target_transform", "transforms"))
    getter = getattr(type(data), "__getitem__", None)
    if getter is None:
        if transformed:
            raise UsageError(
                "the dataset has a transform and no __getitem__ that applies it; apply it to data and targets, or "
                "yield (input, label) pairs",
                code="transform-unapplied",
            )
        return True
    if transformed or not getter.__module__.startswith("torchvision."):
        return False
    if len(data.data) != len(data.targets) or not len(data):
        return True  # which is said where they are put together
    for i in {0, len(data) // 2, len(data) - 1}:
        x, y, _ = _pair(data, i, part)
        if not torch.equal(x, as_inputs(data.data[i], "inputs")) or not np.array_equal(y, data.targets[i]):
            return False
    return True


def _items(data: Any, part: str) -> Source:
    """Everything that ``data`` yields by number."""
    if isinstance(data, Mapping) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise UsageError(
            f"the {part} set is a {type(data).__name__}, which has no examples by number; expected (inputs, "
            "labels), or an object with len(d) and d[i] = (input, label)",
            code="dataset-pairs",
        )
    with global_seed(0, "reading"):
        pairs = [_pair(data, i, part) for i in range(len(data))]
    if not pairs:
        raise UsageError(f"the {part} set has no examples", code="dataset-empty")
    first, layout = _form(pairs[0][0]), pairs[0][2]
    for i, (x, _, own) in enumerate(pairs):
        if own != layout or (layout is None and _form(x) != first):
            forms = [str(layout or first), str(own or _form(x))]
            raise UsageError(
                f"{part} inputs differ: example 0 is {forms[0]}, example {i} is {forms[1]}; bring them to one "
                "shape and type (resize pictures, pad sequences)",
                code="inputs-shapes",
            )
    _refuse_random(data, pairs, part)
    x = torch.stack([x for x, _, _ in pairs])
    return Source(x if layout else channels_first(x), [y for _, y, _ in pairs], layout=layout)


def _refuse_random(data: Any, pairs: list[Pair], part: str) -> None:
    """Raise ValueError if examples differ from ``pairs`` when they are read again, under other seeds."""
    some = np.unique(np.linspace(0, len(pairs) - 1, min(READ_AGAIN, len(pairs))).astype(int)).tolist()
    begun = time.monotonic()
    for seed in range(1, 1 + -(-READ_AGAIN // len(some))):
        if seed > 1 and time.monotonic() - begun > PATIENCE:
            return
        with global_seed(seed, "reading"):
            for i in some:
                x, y, _ = _pair(data, i, part)
                if _bytes(x) != _bytes(pairs[i][0]) or _bytes(y) != _bytes(pairs[i][1]):
                    raise UsageError(
                        f"{part} example {i} changes when it is read again: a random transform would be drawn "
                        "once, at start, for the whole run; take it out, or put it into the model's forward",
                        code="transform-random",
                    )


def _pair(data: Any, i: int, part: str) -> Pair:
    try:
        item = data[i]
    except OWN_CODE as error:
        raise UsageError(f"{part} example {i} cannot be read ({raised(error)})", code="dataset-raises") from error
    if isinstance(item, Mapping):
        raise UsageError(
            f"{part} example {i} is a dictionary of {', '.join(map(str, item))}; {EXPECTED}", code="dataset-pairs"
        )
    if not isinstance(item, tuple | list):
        raise UsageError(f"{part} example {i} is a {type(item).__name__}; {EXPECTED}", code="dataset-pairs")
    if len(item) != 2:
        raise UsageError(
            f"{part} example {i} is a {type(item).__name__} of {len(item)}; {EXPECTED}", code="dataset-pairs"
        )
    if several(item[0], 1):
        row, layout = one(item[0], f"{part} inputs")
        return row, item[1], layout
    return as_inputs(item[0], f"{part} inputs"), item[1], None


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _bytes(value: Any) -> bytes:
    """For comparing: two NaN are the same."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    array = np.asarray(value)
    return repr(value).encode() if array.dtype.hasobject else array.tobytes()
