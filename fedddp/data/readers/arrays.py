"""Arrays by name in a file of numpy: ``data.name=npz``. What is stored uncompressed is mapped into memory, not read."""

import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...errors import UsageError, first_line
from ..datasets import Dataset, Examples
from ..inputs import as_inputs, channels_first, check_memory
from ..labels import listed
from .split import Fraction, Seed, held_out

UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, OverflowError, MemoryError)
UNREADABLE += (RuntimeError,)  # of an archive that is encrypted, or packed in a way that Python does not know
LOCAL_HEADER, NAME_LENGTH, EXTRA_LENGTH = 30, slice(26, 28), slice(28, 30)  # of a file in a zip archive


def arrays(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    file: str,
    x: str = "x",
    y: str = "y",
    owner: str = "owner",
    test_fraction: Fraction = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """Arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x``, ``y`` of which a fraction is the test set.

    ``numpy.savez`` stores uncompressed arrays: those are mapped, so that several ranks of a machine hold them once.

    Args:
        root: the folder of the file.
        download: not used.
        targets: what a target is, see `TARGETS`.
        file: the file below ``root``.
        x: the name of the inputs.
        y: the name of the targets.
        owner: the name of the owner of each example (or of ``owner_train`` and ``owner_test``), if there is one.
        test_fraction: of the examples, drawn by ``seed``; for a file without ``x_train``.
        seed: see ``test_fraction``.

    Raises:
        UsageError: one line that names the file or the array.
    """
    path = root / file
    try:
        with zipfile.ZipFile(path) as archive:
            there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            parts = ("_train", "_test") if f"{x}_train" in there else ("",)
            for name in (f"{name}{part}" for part in parts for name in (x, y)):
                if name not in there:
                    raise UsageError(
                        f"{path}: has no array {name!r}; there are {listed(map(repr, there))}: name them by "
                        "data.args.x and data.args.y",
                        code="npz-array",
                    )
            both = [_examples(path, archive, there, (f"{x}{part}", f"{y}{part}", f"{owner}{part}")) for part in parts]
    except FileNotFoundError:
        raise UsageError(
            f"data.args.file: {path} does not exist; name a file below data.root", code="npz-file"
        ) from None
    except UsageError:
        raise
    except UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)})", code="npz-file") from None
    if len(both) == 1:
        whole, test = both[0], held_out(len(both[0]), test_fraction, seed)
        both = [_chosen(whole, side) for side in (~test, test)]
    return Dataset.of(both[0], both[1], targets=targets)


def _examples(
    path: Path, archive: zipfile.ZipFile, there: Mapping[str, zipfile.ZipInfo], names: Sequence[str]
) -> Examples:
    """The inputs, the targets and, if they are there, the owners of ``names``. Raises UsageError."""
    found = {name: _array(path, archive, there[name]) for name in names if name in there}
    x, y, owner = (found.get(name) for name in names)
    shapes = {name: list(values.shape) for name, values in found.items()}
    if len({tuple(shape[:1]) for shape in shapes.values()}) > 1 or [] in shapes.values():
        told = ", ".join(f"{name!r} is {shape}" for name, shape in shapes.items())
        raise UsageError(f"{path}: {told}; give one of each an example", code="dataset-lengths")
    return Examples(channels_first(as_inputs(x, names[0])), cast(Any, y), owner)


def _chosen(examples: Examples, side: NDArray[np.bool_]) -> Examples:
    y, owner = cast(Any, examples.y)[side], cast(Any, examples.owner)
    return Examples(examples.x[torch.from_numpy(side)], y, None if owner is None else owner[side])


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """One array, mapped copy-on-write if the archive holds its bytes as they are. Raises one of `UNREADABLE`."""
    with archive.open(info) as member:
        old = npy.read_magic(member) == (1, 0)
        shape, by_columns, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(member)
        offset = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects; save numbers")
    if (told := math.prod(shape) * dtype.itemsize) != info.file_size - offset or min(shape, default=1) < 0:
        raise ValueError(f"{info.filename} has {info.file_size - offset:,} bytes of numbers, its header says {told:,}")
    if info.compress_type != zipfile.ZIP_STORED:
        check_memory(told, f"{info.filename}, unpacked, would", "store it with numpy.savez, uncompressed")
        with archive.open(info) as member:
            return npy.read_array(member)
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        header = raw.read(LOCAL_HEADER)
    offset += info.header_offset + LOCAL_HEADER
    offset += sum(int.from_bytes(header[length], "little") for length in (NAME_LENGTH, EXTRA_LENGTH))
    return np.memmap(path, dtype, "c", offset, shape, "F" if by_columns else "C")
