"""Which clients take part in a round, and which rank trains each of them. Drawn alike everywhere, nothing is sent."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .rng import numpy_generator
from .types import Cohort


class Sampler(Protocol):
    """S_t, drawn before the round begins."""

    def cohort(self, round: int) -> Cohort:
        """The cohort of a round (0-based); the same whenever it is asked for."""
        ...


@dataclass(frozen=True)
class UniformSampler:
    """S_t: ``size`` of ``population`` clients, uniformly without replacement (McMahan et al. 2017, Algorithm 1)."""

    population: int
    size: int
    seed: int

    def cohort(self, round: int) -> Cohort:
        """The cohort of a round (0-based), a function of (seed, round)."""
        if self.size == self.population:
            return Cohort(round, tuple(range(self.population)), self.population)
        draw = numpy_generator(self.seed, "cohort", round).choice(self.population, self.size, replace=False)
        return Cohort(round, tuple(sorted(draw.tolist())), self.population)


@dataclass(frozen=True)
class Schedule:
    """Which of a cohort's clients one rank trains. ``work`` tells the examples, padding included, that sizes [m] cost.

    ``bound``: clients stay on their home rank, because their data or their state are there and nowhere else.
    """

    sizes: Tensor  # [N]
    work: Callable[[Tensor], Tensor]
    rank: int
    world_size: int
    bound: bool

    def mine(self, cohort: Cohort, load: int = 0) -> tuple[int, ...]:
        """This rank's clients, most work first, if rank 0 has ``load`` examples' worth of other work."""
        work = self.work(self.sizes[list(cohort.ids)])
        if self.bound:
            return at_home(cohort, work, self.world_size)[self.rank]
        return assign(cohort, work, self.world_size, load=load)[self.rank]


def home_rank(client: int, world_size: int) -> int:
    """The rank that keeps a client's state, and its examples unless every rank has them all."""
    return client % world_size


def assign(cohort: Cohort, work: Sequence[int] | Tensor, world_size: int, *, load: int = 0) -> list[tuple[int, ...]]:
    """Every rank's clients, balanced: longest first, each to the rank with the least to do (Graham 1969, LPT).

    ``work [m]`` of each client of the cohort. ``load``: what rank 0 has to do besides, such as its evaluation.
    Ties go to the lower client id and to the lower rank.
    """
    busy = [(load if rank == 0 else 0, rank) for rank in range(world_size)]
    heapq.heapify(busy)
    mine: list[list[int]] = [[] for _ in range(world_size)]
    for own, client in _longest_first(cohort, work):
        total, rank = busy[0]
        mine[rank].append(client)
        heapq.heapreplace(busy, (total + own, rank))
    return [tuple(ids) for ids in mine]


def at_home(cohort: Cohort, work: Sequence[int] | Tensor, world_size: int) -> list[tuple[int, ...]]:
    """Every rank's clients where data or state bind each to its home; longest first, as `assign` gives them."""
    mine: list[list[int]] = [[] for _ in range(world_size)]
    for _, client in _longest_first(cohort, work):
        mine[home_rank(client, world_size)].append(client)
    return [tuple(ids) for ids in mine]


def _longest_first(cohort: Cohort, work: Sequence[int] | Tensor) -> list[tuple[int, int]]:
    """(work, client), most work first, of those with equally much the lower id."""
    listed = work.tolist() if isinstance(work, Tensor) else work
    return sorted(zip(listed, cohort.ids, strict=True), key=lambda pair: (-pair[0], pair[1]))


def blocks(ids: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
    """``ids`` in as few runs of at most ``width`` as there can be, the clients trained at once.

    Their lengths differ by one at most: a short last run would take the steps of a full one for a few clients.
    """
    runs = -(-len(ids) // width)
    for run in range(runs):
        yield tuple(ids[run * len(ids) // runs : (run + 1) * len(ids) // runs])
