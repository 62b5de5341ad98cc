"""Lock a folder, so that one process at a time writes it; the lock ends with its process and names it."""

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

LOCK = ".lock"


class Busy(RuntimeError):
    """Another process writes a folder; the text names both."""


class Lock:
    """A folder that this process has locked until `release`, or until the last reference is gone."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def release(self) -> None:
        """Unlock the folder."""
        if self._file:
            with suppress(OSError):
                self._file.close()
        self._file = None

    @property
    def held(self) -> bool:
        """False after `release`."""
        return self._file is not None


_held: WeakValueDictionary[tuple[int, Path], Lock] = WeakValueDictionary()


def holder(folder: Path) -> str | None:
    """The text of the process that writes ``folder``; None if there is none. Nothing is written.

    A lock of another machine may not be seen here, so its holder is believed.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            text = file.read().strip()
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return "another process" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return text if f" on {socket.gethostname()}," not in text and text else None


def hold(folder: Path) -> Lock:
    """Lock ``folder``; within one process it is the same lock. Does nothing on a file system without locks.

    Raises:
        Busy: another process has locked it.
        OSError: the lock file cannot be opened.
    """
    key = (os.getpid(), folder.resolve())
    if (lock := _held.get(key)) and lock.held:
        return lock
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise Busy(f"{folder} is being written by {holder or 'another process'}") from None
        return Lock(None)
    with suppress(OSError):  # on a full disk: the lock is what counts
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
    _held[key] = lock = Lock(file)
    return lock
