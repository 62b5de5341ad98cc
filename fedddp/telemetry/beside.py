"""Work beside the training: a thread that runs it in order, and sinks whose errors do not end the run."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from ..comm import interrupt
from .telemetry import Metrics, RoundRecord, Sink

SLOW = 10.0
"""Seconds of waiting for files after which a line says so."""
log = logging.getLogger("fedddp")


class Background:
    """Runs work in a thread of its own, in order, with at most ``backlog`` pieces waiting; ``what`` it writes.

    An error of a piece is raised from the next call. Arguments of a piece must not change afterwards.
    """

    def __init__(self, what: str = "files", backlog: int = 0) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fedddp")
        self._pending: deque[Future[Any]] = deque()
        self._what, self._backlog, self._slow = what, backlog, False

    def run(self, work: Callable[..., Any], *args: Any) -> None:
        """Start ``work`` when all before it is done; waits while more than ``backlog`` pieces are left.

        Waiting passes safe points, so that the other ranks wait as well; `Interrupted` is raised before a start.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) > self._backlog):
            self._await(self._pending[0])
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work, *args))

    def _await(self, piece: Future[Any]) -> None:
        began = time.monotonic()
        while not piece.done():
            interrupt.check()
            wait([piece], timeout=0.1)
            if time.monotonic() - began > SLOW and not self._slow:
                self._slow = True
                log.warning("training waits for %s to be written: the disk is slow", self._what)

    def wait(self) -> None:
        """Wait until all work is done."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread once all work is done, without waiting for that."""
        self._pool.shutdown(wait=False)


class SideWork:
    """Turns an error in a piece of side work into a warning, once per piece and once per reason.

    A request to stop is no `Exception` and passes. A piece that failed is tried again the next time.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    @contextmanager
    def __call__(self, piece: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if self._warned.isdisjoint({piece, reason}):
                log.warning("%s: failed (%s); it is left out, the run continues", piece, reason)
            self._warned |= {piece, reason}


class Beside:
    """A sink whose errors do not end the run."""

    def __init__(self, name: str, sink: Sink, side: SideWork) -> None:
        self._name, self._sink, self._side = name, sink, side

    def round(self, record: RoundRecord) -> None:
        with self._side(self._name):
            self._sink.round(record)

    def close(self, summary: Metrics | None) -> None:
        with self._side(self._name):
            self._sink.close(summary)


class InBackground:
    """A sink that works in a thread beside the training, since drawing takes tenths of a second."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._background = sink, Background("TensorBoard's files", backlog=100)

    def round(self, record: RoundRecord) -> None:
        self._background.run(self._sink.round, record)

    def close(self, summary: Metrics | None) -> None:
        try:
            self._background.wait()
            self._sink.close(summary)
        finally:
            self._background.close()
