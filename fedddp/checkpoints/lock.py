"""Lock a folder, so that one process at a time writes it; the lock ends with its process and names it.

The time of the lock file is renewed every few seconds as long as its process runs: a process that is stopped, or on a
machine that is gone, does not renew it.
"""

import errno
import fcntl
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary, ref

log = logging.getLogger("fedddp")

LOCK = ".lock"
RENEWED = 10.0
"""Seconds between two renewals."""
RENEWS = f"renewed every {RENEWED:g} s"
GONE = 600.0
"""Seconds without a renewal after which the lock of another machine counts as left behind; clocks may differ."""


class Busy(RuntimeError):
    """Another process writes a folder; the text names both."""


class Lock:
    """A folder that this process has locked until `release`, or until the last reference is gone."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file, self._over, self._owner = file, threading.Event(), os.getpid()
        if file:
            threading.Thread(target=_renew, args=(ref(self), self._over), daemon=True).start()

    def renew(self) -> None:
        """Set the time of the lock file to now."""
        if self._file:
            with suppress(OSError, ValueError):  # on a full disk; released in this moment
                os.utime(self._file.fileno())

    def release(self) -> None:
        """Unlock the folder."""
        self._over.set()
        if self._file:
            with suppress(OSError, ValueError):  # closed already, where both were garbage
                if os.getpid() == self._owner:  # not a forked child, which has a copy
                    self._file.truncate(0)  # another machine need not wait for its renewal
                self._file.close()
        self._file = None

    __del__ = release

    @property
    def held(self) -> bool:
        """False after `release`."""
        return self._file is not None


def _renew(lock: ref[Lock], over: threading.Event) -> None:
    while not over.wait(RENEWED):
        if (held := lock()) is None:
            return
        held.renew()
        del held  # or the lock would live as long as this thread


_held: WeakValueDictionary[tuple[int, Path], Lock] = WeakValueDictionary()


def holder(folder: Path) -> str | None:
    """The text of the process that writes ``folder``; None if there is none. Nothing is written.

    A lock of another machine may not be seen here, so its holder is believed as long as it renews the file.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            text, _, more = file.read().partition("\n")
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return "another process" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    away = f" on {socket.gethostname()}," not in text and text
    return text if away and not (RENEWS in more and silent(folder) > GONE) else None


def silent(folder: Path) -> float:
    """Return the seconds since the process that writes ``folder`` renewed its lock; 0 where there is none."""
    try:
        return max(0.0, time.time() - (folder / LOCK).stat().st_mtime)
    except OSError:
        return 0.0


def hold(folder: Path) -> Lock:
    """Lock ``folder``; within one process it is the same lock.

    A file system may have no locks, or none that another machine sees: a process there that renews the file keeps it.

    Raises:
        Busy: another process has locked it.
        OSError: the lock file cannot be opened.
    """
    key = (os.getpid(), folder.resolve())
    if (lock := _held.get(key)) and lock.held:
        return lock
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        _lock(file)
    except OSError as error:
        file.seek(0)
        holder = file.readline().strip()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.close()
            raise Busy(f"{folder} is being written by {holder or 'another process'}") from None
    file.seek(0)
    holder, _, more = file.read().partition("\n")
    if RENEWS in more and f" on {socket.gethostname()}," not in holder and _renewed(folder, holder):
        file.close()
        raise Busy(f"{folder} is being written by {holder}")
    with suppress(OSError):  # on a full disk: the lock is what counts
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n{RENEWS}\n")
        file.flush()
    _held[key] = lock = Lock(file)
    return lock


def _renewed(folder: Path, holder: str) -> bool:
    """Return whether a process of another machine renews its lock; where it did not long ago, look for that long."""
    before, deadline = silent(folder), time.monotonic() + 2 * RENEWED
    if before > 3 * RENEWED:
        return False
    log.warning("%s: looking for %g s whether %s still writes it", folder, 2 * RENEWED, holder)
    while (now := silent(folder)) >= before and time.monotonic() < deadline:
        before = now
        time.sleep(RENEWED / 50)
    return now < before


def _lock(file: IO[str], tries: int = 4) -> None:
    """Lock a file. A reader that looks whether it is locked (`holder`) holds it for a moment."""
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not left or error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            time.sleep(0.05)
