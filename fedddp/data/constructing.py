"""Construct a user's or torchvision's dataset class; distinguish missing files from other errors.

Only an error of the constructor can mean that files are missing: FileNotFoundError, or RuntimeError in torchvision's
words. Then the download is tried, if it may be. Any other error is the class's own, or that of a damaged file.
"""

import contextlib
import fcntl
import hashlib
import inspect
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import OWN_CODE, UsageError, first_line, raised

IDX_BYTES = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # of a number, by the type in the header of MNIST's format


def check_call(cls: Any, args: Mapping[str, Any]) -> None:
    """Raise ValueError if ``cls`` does not take what `constructed` gives it."""
    known: Mapping[str, Any] = {}
    try:
        known = inspect.signature(cls).parameters
        inspect.signature(cls).bind(root="", train=True, download=False, **args)
    except TypeError as error:
        if "split" in known and "train" not in known:
            raise UsageError(
                "takes split and not train; expected a class called with root, train=True or False, download: "
                "derive one whose __init__ passes split='train' if train else 'test' on",
                code="dataset-arguments",
            ) from None
        keys = f" and data.args ({', '.join(args)})" if args else ""
        raise UsageError(
            f"expected a class called with root, train, download{keys} ({error})", code="dataset-arguments"
        ) from None


def constructed(cls: Callable[..., Any], root: Path, download: bool, args: Mapping[str, Any]) -> tuple[Any, Any]:
    """Training and test set, downloaded if they are missing and may be. Raises ValueError with one line."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return cls(root=str(root), train=True, download=False, **args), cls(
                root=str(root), train=False, download=False, **args
            )
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
            return _downloaded(cls, root, True, args), _downloaded(cls, root, False, args)


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


def _downloaded(cls: Callable[..., Any], root: Path, train: bool, args: Mapping[str, Any]) -> Any:
    try:
        return cls(root=str(root), train=train, download=True, **args)
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
