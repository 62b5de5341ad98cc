"""Several runs side by side: which differ in their seeds only, and whether their difference can be chance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tasks.metrics import Target
from .runs import NAMING, Run

SEEDS = (*NAMING, "run.seed", "run.threads")
"""Keys that may differ between repetitions of one experiment."""
NAMED_BY = 3
"""Number of keys up to which a group is named by those in which it differs."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, with different seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def finals(self) -> list[float]:
        return [run.final for run in self.runs if run.final is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.finals) if self.finals else None

    @property
    def deviation(self) -> float | None:
        """Sample deviation; None for fewer than two."""
        return statistics.stdev(self.finals) if len(self.finals) > 1 else None

    def curve(self, key: str) -> list[tuple[int, float]]:
        """The mean over the runs, of the rounds that all of them have."""
        curves = [dict(points) for run in self.runs if (points := run.points(key))]
        rounds = sorted(set.intersection(*map(set, curves))) if curves else []
        return [(t, statistics.fmean(curve[t] for curve in curves)) for t in rounds]


@dataclass(frozen=True)
class Difference:
    """Welch's t-test of a group's final values against those of the first; ``p`` None: there is no statement."""

    name: str
    difference: float | None
    p: float | None


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by configuration, in their order, named by the keys in which they differ."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(sorted(_compared(run).items())), []).append(run)
    apart = differing([members[0] for members in found.values()])
    choices = tuple(key.removesuffix("name") for key in apart if key.endswith(".name"))
    apart = [key for key in apart if key.endswith(".name") or not key.startswith(choices)]  # the name says it
    return [Group(_name(members, apart), tuple(members)) for members in found.values()]


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ, seeds and names left out."""
    keys = dict.fromkeys(key for run in runs for key in _compared(run))
    return [key for key in keys if len({repr(_compared(run).get(key)) for run in runs}) > 1]


def _compared(run: Run) -> Mapping[str, Any]:
    return {key: value for key, value in run.keys.items() if key not in SEEDS}


def _name(members: Sequence[Run], apart: Sequence[str]) -> str:
    if not 0 < len(apart) <= NAMED_BY:
        return members[0].name
    return ", ".join(f"{key}={members[0].keys.get(key, '-')}" for key in apart)


def level(runs: Sequence[Run]) -> float | None:
    """The value up to which rounds are counted: the first run's target, or else what the weakest run reached."""
    keys = runs[0].keys
    target = Target.asked(keys.get("evaluate.target_accuracy"), keys.get("evaluate.target"))
    if target and target.key == runs[0].primary:
        return target.value
    bests = [run.best[1] for run in runs if run.best]
    return (max if runs[0].lower else min)(bests, default=None)


def against_first(compared: Sequence[Group]) -> list[Difference]:
    """Each group but the first against the first."""
    first, *others = compared
    return [
        Difference(
            group.name,
            None if group.mean is None or first.mean is None else group.mean - first.mean,
            welch(group.finals, first.finals),
        )
        for group in others
    ]


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p of Welch's t-test; None with fewer than two values of either, or without any deviation.

    B. L. Welch 1947, "The generalization of 'Student's' problem when several different population variances are
    involved". With t = sqrt(nu) tan(theta), Student's density is proportional to cos(theta)^(nu - 1).
    """
    if min(len(a), len(b)) < 2:
        return None
    u, v = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if u + v == 0:
        return None
    nu = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    t = abs(statistics.fmean(a) - statistics.fmean(b)) / math.sqrt(u + v)
    start = math.atan(t / math.sqrt(nu))
    tail, half = (_integral(low, nu - 1) for low in (start, 0.0))
    return tail / half


def _integral(low: float, power: float) -> float:
    """Of cos(theta)^power from ``low`` to pi / 2, by 20,000 midpoints."""
    step = (math.pi / 2 - low) / 20_000
    return float((np.cos(low + step * (np.arange(20_000) + 0.5)) ** power).sum() * step)
