"""Predict how long a run still takes, from the seconds of its rounds with and without evaluation."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from .telemetry import Metrics

RECENT = 20
"""Number of rounds whose mean counts: a machine that others share becomes slower and faster."""

Due = tuple[bool, ...]
"""Which kinds of evaluation are due after a round."""


@dataclass(frozen=True)
class Plan:
    """What is known of a run's rounds before they are trained.

    Attributes:
        rounds: the number of the last round.
        done: the number of rounds that were trained before, by a process that was interrupted.
        every: the rounds between evaluations, for each kind of evaluation; 0: only after the last round.
        evaluation: the time of an evaluation over that of a round without one, until one has been measured.
        lr: the clients' learning rate in a round (1-based); None if the optimizer has none.
    """

    rounds: int
    done: int = 0
    every: tuple[int, ...] = (1,)
    evaluation: float = 0.0
    lr: Callable[[int], float | None] = lambda t: None

    def due(self, t: int) -> Due:
        """Return which kinds of evaluation follow round ``t`` (1-based)."""
        return tuple(t == self.rounds or (n > 0 and t % n == 0) for n in self.every)


class Pace:
    """The seconds of the rounds of this process.

    The first one has checks, warm-up and compilation in it, so a prediction begins with the second. A kind of
    evaluation that has not occurred yet is taken for the longest one that has, or for ``plan.evaluation``.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._ended = plan, time.perf_counter()
        self._base: deque[float] = deque(maxlen=RECENT)
        self._evaluation: defaultdict[Due, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._rounds, self._left = 0, 0.0
        self._todo = Counter(plan.due(t) for t in range(plan.done + 1, plan.rounds + 1))

    def round(self, m: Metrics) -> None:
        """Take the round that has just ended into account."""
        now, evaluation, due = time.perf_counter(), m.get("seconds_evaluate") or 0.0, self._plan.due(m["round"])
        if self._rounds == 1:  # the second round's replace the first's
            self._base.clear()
            self._evaluation.pop(due, None)
        self._rounds += 1
        self._base.append(max(0.0, now - self._ended - evaluation))
        self._evaluation[due].append(evaluation)
        self._todo[due] -= 1
        self._ended, self._left = now, self._predicted()

    @property
    def rounds(self) -> int:
        """The number of rounds that have ended."""
        return self._rounds

    def left(self) -> float | None:
        """Return the seconds that are left from now; None before the second round has ended."""
        return max(0.0, self._ended + self._left - time.perf_counter()) if self._rounds > 1 else None

    def _predicted(self) -> float:
        base, means = _mean(self._base), {due: _mean(seconds) for due, seconds in self._evaluation.items()}
        other = max((mean for due, mean in means.items() if any(due)), default=base * self._plan.evaluation)
        return sum(n * (base + means.get(due, other if any(due) else 0.0)) for due, n in self._todo.items() if n > 0)


def _mean(seconds: deque[float]) -> float:
    return sum(seconds) / len(seconds)


def clock(seconds: float) -> str:
    """Return a duration as precisely as it can be predicted: 2:03, 1.7 h or 28 h."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{seconds / 3600:.{1 if seconds < 35820 else 0}f} h"
