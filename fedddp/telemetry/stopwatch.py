"""Where a round's time goes."""

from __future__ import annotations

import time

from ..types import Report


class Stopwatch:
    """One round, seen from this rank, in seconds.

    ``train`` is the slowest rank's training; ``aggregate`` is what came after the last rank arrived until the new
    model was there: the collective and the server's step, not the waiting for others. All ranks began when the last
    collective completed (``synced_at``), so that is where the others' training times are counted from.
    """

    def __init__(self, synced_at: float) -> None:
        self._synced_at = self._mark = synced_at
        self._arrived = synced_at
        self.train = self.aggregate = self.evaluate = 0.0

    def arrived(self) -> None:
        """This rank has trained its clients."""
        self._arrived = time.perf_counter()

    def aggregated(self, report: Report) -> None:
        """The server's step is done."""
        self._mark = time.perf_counter()
        self.train = max(report.seconds_train)
        last_arrival = max(self._arrived, self._synced_at + self.train)
        self.aggregate = max(0.0, self._mark - last_arrival)

    def evaluated(self) -> None:
        """The evaluation is done, or was not due."""
        self.evaluate = time.perf_counter() - self._mark
