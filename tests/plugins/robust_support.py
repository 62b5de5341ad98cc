"""Rounds of a rule over ranks: seven clients' updates, dealt out unevenly, and the rules with keys that matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedddp.aggregation import CoordinateShards
from fedddp.aggregation.rules import (
    CenteredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from fedddp.aggregation.rules.base import Coordinatewise
from fedddp.attacks import IPM, Adversary

LENGTH = 41  # a multiple of neither 2 nor 3
IDS = (2, 3, 5, 11, 1_500_000, 1_500_001, 9_999_999)  # beyond what a float32 beside others could number carelessly
WEIGHTS = (7.0, 1.0, 30.0, 12.0, 5.0, 3.0, 9.0)
RULES = {
    "mean": WeightedMean(),
    "median": Median(),
    "trimmed_mean": TrimmedMean(2),
    "krum": Krum(2),
    "multi_krum": MultiKrum(2, selected=3),
    "geometric_median": GeometricMedian(),
    "norm_bound": NormBound(4.0),
    "centered_clipping": CenteredClipping(radius=3.0, iterations=4),
    "without history": CenteredClipping(radius=3.0, iterations=4, history=False),
}
LAST = torch.linspace(0, 2, LENGTH, dtype=torch.float64)  # the result of the round before


def updates(dtype=torch.float32):
    """[7, LENGTH]: five that are alike, one ten times as long, one reversed."""
    stream = torch.Generator().manual_seed(3)
    rows = 1 + 0.5 * torch.randn(len(IDS), LENGTH, generator=stream, dtype=torch.float64)
    rows[2] *= 10
    rows[5] *= -4
    return rows.to(dtype)


def a_round(comm, rule, who, *, seed=0, tamper=None, dtype=torch.float32, failing=()):
    """The result [LENGTH] of one round in which this rank has the updates ``who`` (positions in IDS)."""
    reduce = CoordinateShards(rule, dtype, "cpu", comm.world_size, seed=seed, tamper=tamper)
    reduce.open(LENGTH, 4, sum(WEIGHTS))
    reduce.tail[:] = torch.tensor([comm.rank + 1.0, 0, 2, 3])
    reduce.recall(LAST)
    rows = updates(dtype)
    for i in who:
        if i not in failing:
            reduce.add(rows[i : i + 1], torch.tensor([WEIGHTS[i]]), [IDS[i]])
    total = reduce.total(comm, 4)
    assert reduce.tail.tolist() == [sum(range(1, comm.world_size + 1)), 0, 2 * comm.world_size, 3 * comm.world_size]
    weight = sum(w for i, w in enumerate(WEIGHTS) if i not in failing)
    return total / weight


DEALT = {1: [(5, 0, 3, 1, 6, 2, 4)], 2: [(5, 0), (3, 1, 6, 2, 4)], 3: [(5, 0, 3, 1), (), (6, 2, 4)]}


def every_rule(comm):
    """Results by name, of all seven clients, of five (two failed), and with two that collude."""
    who = DEALT[comm.world_size][comm.rank]
    collude = Adversary(IPM(2, epsilon=3.0), frozenset((IDS[0], IDS[6])), 0).tamper
    found = {}
    for name, rule in RULES.items():
        found[name] = a_round(comm, rule, who)
        found[f"{name}, colluding"] = a_round(comm, rule, who, tamper=collude)
    for name in ("mean", "median", "norm_bound", "geometric_median"):
        found[f"{name}, failing"] = a_round(comm, RULES[name], who, failing=(0, 2))
    found["noise"] = a_round(comm, NormBound(4.0, noise=0.1), who, seed=5)
    return found, comm.bytes_sent


@dataclass(frozen=True)
class Midrange(Coordinatewise):
    """A rule of a user's own: half way between the extremes, ``trim`` of them cut off at either end."""

    trim: int = 0

    def columns(self, x, weight):
        ordered = x.sort(dim=0).values[self.trim : len(x) - self.trim]
        return (ordered[0] + ordered[-1]) / 2
