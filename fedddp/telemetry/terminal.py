"""Print to stdout and stderr, and continue without them if they are closed, full or gone."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console

log = logging.getLogger("fedddp")


class _Console(Console):
    """A console that does not end the program when the reader of a pipe has gone, as rich's own does."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError, where rich catches it


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # no stdout, or closed
        return False


def console(width: int = 110) -> Console:
    """A console for tables: as wide as the terminal, or ``width`` without one."""
    return _Console(width=None if on_terminal() else width)


class Outlet:
    """A text stream that may fail: after an error output is dropped, with one warning."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name, self._stream = name, stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # no reader, a full disk, closed
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: Exception) -> None:
        null = _nowhere()
        with suppress(OSError, ValueError):  # what is still buffered would fail again when the process ends
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null
        log.warning(
            "%s: cannot be written (%s); nothing more is printed there, the program continues", self._name, error
        )


@contextmanager
def lasting_output() -> Iterator[None]:
    """Inside the block printing does not fail if stdout or stderr is closed, or a pipe without a reader.

    A thread of a library that fails because the disk is full is reported in one line.
    """
    for number in range(3):
        _hold_open(number)
    before, hook = (sys.stdout, sys.stderr), threading.excepthook
    sys.stdout, sys.stderr = (
        cast(TextIO, Outlet(name, stream or _nowhere()))
        for name, stream in zip(("stdout", "stderr"), before, strict=True)
    )
    threading.excepthook = lambda args: (
        log.warning("thread %s: %s", args.thread and args.thread.name, args.exc_value)
        if isinstance(args.exc_value, OSError)
        else hook(args)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (sys.stdout, sys.stderr), threading.excepthook = before, hook


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _hold_open(number: int) -> None:
    """Open a closed descriptor on the null device, before a file gets its number and thus what is printed."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)


class _Stderr(logging.Handler):
    """Writes to sys.stderr as it is at the time: a live bar replaces it to keep its line."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):  # nobody can read it
                print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(rank: int, world_size: int) -> None:
    """Log warnings and remarks of this rank to stderr, as lines that name the rank."""
    handler = _Stderr()
    handler.setFormatter(
        logging.Formatter(f"fedddp[rank {rank}]: %(message)s" if world_size > 1 else "fedddp: %(message)s")
    )
    logger = logging.getLogger("fedddp")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
