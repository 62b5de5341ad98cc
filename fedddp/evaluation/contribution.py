"""What each client's update contributed to a round: leave one out, and a truncated Shapley value.

Letters: m clients of a round. The value V(S) of a set S of them is the test metric of the model that the server's step
makes of the mean of their updates alone; V of nobody is that of the model before the round. Nothing is trained again.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..algorithms.base import Around, LocalTraining
from ..comm import Comm, Purpose
from ..data import Examples, Normalizer
from ..rng import numpy_generator
from ..tasks import Task
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .server import Scorer

PERMUTATIONS = 20
"""Orders of the clients that a Shapley value is averaged over; all of them where there are no more."""
TOLERANCE = 1e-3
"""Difference from the value of all clients below which the rest of an order is not evaluated."""

Row = tuple[dict[str, Tensor], float]
"""A client's update, and its weight in the mean."""
Value = Callable[[tuple[int, ...]], float]
"""V of a set of clients, by their numbers from 0 to m - 1 in ascending order."""


def shapley(value: Value, m: int, seed: int) -> dict[int, float]:
    """Estimate each client's Shapley value by Ghorbani & Zou 2019, "Data Shapley", Algorithm 1 (TMC-Shapley).

    For each order pi of the clients, V of the first j of them for j = 1, 2, ...; a client's value is the mean over
    orders of V(with it) - V(before it). Where V is within `TOLERANCE` of that of all clients, the rest of the order
    counts as 0. Their points are clients here, and instead of training anew, updates are averaged anew.
    """
    if math.factorial(m) <= PERMUTATIONS:
        orders = list(itertools.permutations(range(m)))
    else:
        drawn = numpy_generator(seed, "shapley")
        orders = [tuple(drawn.permutation(m).tolist()) for _ in range(PERMUTATIONS)]
    total, whole = dict.fromkeys(range(m), 0.0), value(tuple(range(m)))
    for order in orders:
        before = value(())
        for j, client in enumerate(order, 1):
            if abs(whole - before) < TOLERANCE:
                break
            now = value(tuple(sorted(order[:j])))
            total[client] += now - before
            before = now
    return {client: sum_ / len(orders) for client, sum_ in total.items()}


@dataclass
class Recorder:
    """The rows of the current round on this rank, and what they contributed."""

    rows: dict[int, Row] = field(default_factory=dict)
    round: int = -1
    measured: int = -1
    latest: dict[str, float] = field(default_factory=dict)

    def see(self, round: int, ids: Sequence[int], update: Update) -> None:
        """Keep the updates of clients ``ids``, but for those that are not finite, which the mean leaves out."""
        if round != self.round:
            self.rows.clear()
            self.round = round
        for i, k in enumerate(ids):
            vectors = {name: rows[i].clone() for name, rows in update.vectors.items()}
            if all(bool(v.isfinite().all()) for v in vectors.values()):
                self.rows[k] = vectors, float(update.weight[i])


@dataclass(frozen=True, eq=False)
class Contributions(Around):
    """``inner``, unchanged, which also measures what each client of a round contributed.

    Leave one out needs no row of another rank, since the mean without a client follows from the mean and its own row:
    (W u - w_k u_k) / (W - w_k). The Shapley value needs all rows on one rank.

    Attributes:
        how: "leave_one_out" or "shapley".
        quality: the test metric of a model [D], larger for a better one.
        comm: the ranks.
        every: rounds between measurements.
        seed: seed of the orders.
        seen: what this rank saw.
    """

    how: str
    quality: Callable[[Tensor], float]
    comm: Comm
    every: int
    seed: int
    seen: Recorder = field(default_factory=Recorder)

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = self.inner.client_update(server, client, local)
        if self._due(server):
            self.seen.see(server.round, local.ids, update)
        return update, state, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        after = self.inner.server_update(server, mean, cohort)
        if self._due(server):
            self.seen.measured, self.seen.latest = after.round, self._measured(server, after, mean, cohort)
        return after

    def after(self, round: int) -> dict[str, float]:
        """What each client contributed to the round that ``round`` completed, by its key in ``metrics.jsonl``."""
        return self.seen.latest if self.seen.measured == round else {}  # a round that brings nothing has none

    def _due(self, server: ServerState) -> bool:
        return (server.round + 1) % self.every == 0

    def _measured(self, server: ServerState, after: ServerState, mean: Mean, cohort: Cohort) -> dict[str, float]:
        """The value of each client by its key in ``metrics.jsonl``; the same on every rank."""
        rows = self.seen.rows if self.seen.round == server.round else {}
        ids = [k for k in cohort.ids if k in rows]

        @cache
        def value(members: tuple[int, ...]) -> float:
            if len(members) == len(ids) and self.comm.world_size == 1:
                return self.quality(after.w)
            if not members:
                return self.quality(server.w)
            part = _mean_of([rows[ids[i]] for i in members], mean)
            return self.quality(self.inner.server_update(server, part, cohort).w)

        if self.how == "shapley":
            found = shapley(value, len(ids), self.seed)
            return {f"contribution_{ids[i]}": v for i, v in found.items()}
        self.comm.enter("contributions")
        slots = torch.zeros(2, len(cohort.ids), dtype=torch.float64)  # values, and whether there is one
        whole = self.quality(after.w) if ids else 0.0
        for k in ids:
            rest = _without(rows[k], mean)
            model = self.inner.server_update(server, rest, cohort).w if rest else server.w
            at = cohort.ids.index(k)
            slots[0, at], slots[1, at] = whole - self.quality(model), 1
        self.comm.all_reduce(slots, Purpose.EVALUATE_CLIENTS)
        return {f"contribution_{k}": float(v) for k, v, there in zip(cohort.ids, *slots, strict=True) if there}


def measuring(
    inner: Algorithm, task: Task, test: Examples, normalize: Normalizer, comm: Comm, **how: Any
) -> Contributions:
    """Return `Contributions` around ``inner`` whose metric is the task's, of all of ``test``, on every rank."""
    scorer = Scorer(task, test, normalize, comm.device, how["seed"])
    scorer.take(slice(None))
    return Contributions(
        inner, comm=comm, quality=lambda w: scorer.score(*scorer.measure(w), draws=False).quality, **how
    )


def _mean_of(rows: Sequence[Row], mean: Mean) -> Mean:
    """The weighted mean of ``rows``, in the form of ``mean``."""
    weights = torch.tensor([w for _, w in rows], dtype=torch.float64)
    total = float(weights.sum())
    vectors = {}
    for name, like in mean.vectors.items():
        stacked = torch.stack([vectors[name] for vectors, _ in rows]).double()
        vectors[name] = (weights.to(stacked.device) @ stacked / total).to(like)
    return replace(mean, vectors=vectors, weight=total, count=len(rows))


def _without(row: Row, mean: Mean) -> Mean | None:
    """``mean`` without one of its rows; None if nothing is left."""
    vectors, weight = row
    left = mean.weight - weight
    if left <= 0:
        return None
    parts = {}
    for name, u in mean.vectors.items():
        parts[name] = ((mean.weight * u.double() - weight * vectors[name].double()) / left).to(u)
    return replace(mean, vectors=parts, weight=left, count=None if mean.count is None else mean.count - 1)
