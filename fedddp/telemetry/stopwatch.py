"""Where a round's time goes."""

from __future__ import annotations

import time

from ..types import RoundReport


class Stopwatch:
    """One round, seen from this rank, in seconds.

    ``train`` is the slowest rank's training; ``aggregate`` is what came after it until the new model was there: the
    collective and the server's step, not the waiting for others.
    """

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self.train = self.aggregate = self.evaluate = 0.0

    def aggregated(self, report: RoundReport) -> None:
        """The server's step is done."""
        self._mark = time.perf_counter()
        self.train = max(report.seconds_train)
        self.aggregate = max(0.0, self._mark - self._start - self.train)

    def evaluated(self) -> None:
        """The evaluation is done, or was not due."""
        self.evaluate = time.perf_counter() - self._mark

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start
