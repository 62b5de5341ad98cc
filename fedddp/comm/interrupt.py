"""Stop a run at the next safe point after SIGTERM, SIGINT or the death of the launcher.

A thread receives signals at once (also while the main thread is inside C++) and sets a flag. Local steps, evaluation
batches and waiting collectives call `check`, which raises `Interrupted` where nothing is half written. A process that
reaches no safe point within a few seconds is ended; the files of finished rounds stay complete.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ..errors import INTERRUPTED

GRACE = 4.0  # seconds from a request to a safe point
ORPHANED = "the launcher died"

passed = 0
"""Safe points passed by this process: a rank that is slow makes progress, one that hangs does not."""

_reason: str | None = None
_noticed = False
_launcher: int | None = None  # the process that started this rank, if it is to end with it


class Interrupted(BaseException):
    """The run was asked to stop. Not an `Exception`: a failing client is tolerated, a request to stop is not."""


def check() -> None:
    """Count a safe point, and raise `Interrupted` if the process was asked to stop."""
    global _noticed, passed
    passed += 1
    if _orphaned():
        request(ORPHANED)
    if _reason is not None:
        _noticed = True
        raise Interrupted(_reason)
    if time.monotonic() > deadline:
        raise Late


class Late(Exception):
    """The time that clients have is over, see `deadline`."""


deadline = float("inf")
"""The time (`time.monotonic`) from which safe points raise `Late`, while clients train."""


@contextmanager
def explaining(kind: type[Exception]) -> Iterator[None]:
    """Raise `Interrupted` for an error of this ``kind`` if the process was asked to stop: the others were asked too.

    A rank that stopped first, and a launcher that took the store along, look like faults to those that still work.
    """
    try:
        yield
    except kind:
        check()
        raise


def request(reason: str) -> None:
    """Ask this process to stop at its next safe point."""
    global _reason
    _reason = _reason or reason


@contextmanager
def handled() -> Iterator[None]:
    """Inside the block SIGTERM, SIGINT and the death of torchrun (if it is the parent) are requests to stop.

    Does nothing outside the main thread, where signals cannot be handled. Previous handlers are restored.
    """
    global _reason, _noticed, _launcher
    _reason, _noticed = None, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    before_fd = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=_listen, args=(receiving,), daemon=True).start()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _launcher = os.getppid()
        threading.Thread(target=_watch_launcher, daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(sending)  # ends the listener
        _reason = _launcher = None


def _orphaned() -> bool:
    return _launcher is not None and os.getppid() != _launcher


def _listen(receiving: int) -> None:
    """Turn the bytes that signals leave in the pipe into requests, until its other end is closed."""
    with os.fdopen(receiving, "rb", buffering=0) as pipe:
        while received := pipe.read(1):
            if received[0] in (signal.SIGTERM, signal.SIGINT):
                _stop(signal.Signals(received[0]).name)


def _watch_launcher() -> None:
    while not _orphaned():
        if _launcher is None:
            return
        time.sleep(0.5)
    _stop(ORPHANED)


def _stop(reason: str) -> None:
    request(reason)
    timer = threading.Timer(GRACE, lambda: None if _noticed else os._exit(INTERRUPTED))
    timer.daemon = True
    timer.start()


def leave(code: int) -> NoReturn:
    """End this process at once: the destructor of a process group would wait for running collectives."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
