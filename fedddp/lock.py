"""One process at a time writes a folder: a lock that ends with its process, and says whose it is."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"

_held: dict[tuple[int, Path], IO[str]] = {}


class Busy(RuntimeError):
    """Another process holds a folder; the text names both."""


def hold(folder: Path) -> None:
    """Hold ``folder`` until `release` or the end of this process, which may hold it already. Raises Busy or OSError.

    Does nothing on a file system without locks.
    """
    key = (os.getpid(), folder.resolve())
    if key in _held:
        return
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise Busy(f"{folder} is being written by {holder or 'another process'}") from None
        return
    with suppress(OSError):  # on a full disk: the lock is what counts
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
    _held[key] = file


def release(folder: Path) -> None:
    """Let another process have ``folder``."""
    file = _held.pop((os.getpid(), folder.resolve()), None)
    if file:
        with suppress(OSError):
            file.close()
