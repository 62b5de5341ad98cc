"""Run work in a thread beside the training, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs work in a thread of its own, in order, with at most ``backlog`` pieces waiting.

    An error of a piece is raised from the next call. Arguments of a piece must not change afterwards.
    """

    def __init__(self, backlog: int = 0) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fedddp")
        self._pending: deque[Future[Any]] = deque()
        self._backlog = backlog

    def run(self, work: Callable[..., Any], *args: Any) -> None:
        """Start ``work`` when all before it is done; waits while more than ``backlog`` pieces are left."""
        while self._pending and (self._pending[0].done() or len(self._pending) > self._backlog):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work, *args))

    def wait(self) -> None:
        """Wait until all work is done."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread once all work is done, without waiting for that."""
        self._pool.shutdown(wait=False)
