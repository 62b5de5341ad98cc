"""Write files durably (fsync), or fail with one line."""

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..comm import interrupt


class WriteError(OSError):
    """A file of a run could not be written: which, why and how to continue, in one line."""


@contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Inside the block an error of the file system becomes a `WriteError` about ``what``, with the ``remedy``.

    However long it takes, the other ranks wait: see `interrupt.at_disk`.
    """
    try:
        with interrupt.at_disk():
            yield
    except WriteError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        problem = f"no space left for {what}" if full else f"{what} cannot be written ({error})"
        raise WriteError(f"{problem}; {remedy}") from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file, replaced as a whole. Raises OSError."""
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(content)
    sync(hidden)
    hidden.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replaced as a whole, with the mode of the umask (safetensors: 0600). Raises OSError."""
    hidden = path.with_name(f".{path.name}")
    hidden.touch()
    mode = stat.S_IMODE(hidden.stat().st_mode)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, hidden, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error)) from None
    hidden.chmod(mode)
    sync(hidden)
    hidden.replace(path)
