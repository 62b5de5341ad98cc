"""Stop a run at the next safe point after a signal or the death of the launcher, and end it the same way each time.

A thread receives signals at once (also while the main thread is inside C++) and sets a flag. Local steps, evaluation
batches and waiting collectives call `check`, which raises `Interrupted` where nothing is half written. A process that
reaches no safe point within a few seconds is ended from that thread: what `ending` was given is called first, as after
an error, so that the last finished round and the cause are written.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from .. import launched
from ..errors import INTERRUPTED

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that ask to stop. SLURM can send SIGUSR1 before a time limit, a terminal that is closed sends SIGHUP."""
GRACE = 4.0  # seconds from a request to a safe point
LAST = 20.0  # seconds in which a process without a safe point writes its last round; torchrun kills after 30
ORPHANED = "the launcher died"

passed = 0
"""Safe points passed by this process: a rank that is slow makes progress, one that hangs does not."""

_reason: str | None = None
_noticed = False
_launcher: int | None = None  # the process that started this rank, if it is to end with it
_writing: list[None] = []  # one for each block of `at_disk`
_end: Callable[[BaseException], None] | None = None
_ends = threading.Lock()
_timers: list[threading.Timer] = []  # of requests within the block of `handled`, which end with it


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


@contextmanager
def at_disk() -> Iterator[None]:
    """Inside the block this process writes to a disk, whichever of its threads: other ranks wait for a slow one."""
    _writing.append(None)
    try:
        yield
    finally:
        _writing.pop()


def progress() -> int:
    """Return a number that has grown since the last call if a safe point was passed, or a file is being written."""
    global passed
    passed += bool(_writing)
    return passed


def request(reason: str) -> None:
    """Ask this process to stop at its next safe point."""
    global _reason
    _reason = _reason or reason


@contextmanager
def ending(end: Callable[[BaseException], None], survives: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Call ``end`` with the error, once, if the block fails or is cut short after a request to stop.

    ``survives``: errors for which it is not called.
    """
    global _end, _noticed
    _end = end
    try:
        yield
    except survives:
        raise
    except BaseException as error:
        _noticed = True  # no other end is needed, however long this one takes
        _run_end(error)
        raise
    finally:
        _end, _noticed = None, _reason is not None


def _run_end(error: BaseException) -> None:
    global _end
    with _ends:  # the second caller waits for the first
        end, _end = _end, None
        if end:
            end(error)


def asked_by() -> tuple[signal.Signals, ...]:
    """Return the signals of `REQUESTS` that this process was not started to ignore, as nohup and shells ask for."""
    always = (signal.SIGTERM, signal.SIGINT)
    return tuple(s for s in REQUESTS if s in always or signal.getsignal(s) != signal.SIG_IGN)


@contextmanager
def handled() -> Iterator[None]:
    """Inside the block the signals of `REQUESTS` and the death of torchrun (if it is the parent) are requests to stop.

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
    before = {number: signal.signal(number, lambda *_: None) for number in asked_by()}
    threading.Thread(target=_listen, args=(receiving,), daemon=True).start()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _launcher = launched.parent
        threading.Thread(target=_watch_launcher, daemon=True).start()
        launched.tie(0)  # from now on that thread ends this process in order
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(sending)  # ends the listener
        while _timers:
            _timers.pop().cancel()  # else a later block of this process would be cut short
        _reason = _launcher = None


def _orphaned() -> bool:
    return _launcher is not None and os.getppid() != _launcher


def _listen(receiving: int) -> None:
    """Turn the bytes that signals leave in the pipe into requests, until its other end is closed."""
    with os.fdopen(receiving, "rb", buffering=0) as pipe:
        while received := pipe.read(1):
            if received[0] in REQUESTS:
                _stop(signal.Signals(received[0]).name)


def _watch_launcher() -> None:
    while not _orphaned():
        if _launcher is None:
            return
        time.sleep(0.5)
    _stop(ORPHANED)


def _stop(reason: str) -> None:
    request(reason)
    timer = threading.Timer(GRACE, _forced, [reason])
    timer.daemon = True
    _timers.append(timer)
    timer.start()


def _forced(reason: str) -> None:
    """End a process whose main thread reaches no safe point; a disk that hangs does not keep it."""
    if _noticed:
        return
    error = Interrupted(f"{reason}; this rank reached no safe point within {GRACE:g} s")
    last = threading.Thread(target=_run_end, args=(error,), daemon=True)
    last.start()
    last.join(LAST)
    os._exit(INTERRUPTED)


def leave(code: int) -> NoReturn:
    """End this process at once: the destructor of a process group would wait for running collectives."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
