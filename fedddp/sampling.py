"""Which clients take part in a round, and which rank trains each of them. Drawn alike everywhere, nothing is sent."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from .rng import numpy_generator
from .types import Cohort

Losses = Callable[[Cohort, Tensor], Tensor]
"""Mean loss of each of a cohort's clients at ``w [D]``, [m]; the same on every rank. All ranks ask at once."""


class Sampler(Protocol):
    """S_t, drawn before the round begins."""

    def cohort(self, round: int) -> Cohort:
        """Who is drawn for a round (0-based); the same whenever it is asked for."""
        ...

    def chosen(self, cohort: Cohort, w: Tensor) -> Cohort:
        """Those of the clients drawn that take part from the model ``w [D]``; the same on every rank."""
        return cohort


@dataclass(frozen=True)
class UniformSampler(Sampler):
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
class SizeSampler(Sampler):
    """S_t: ``size`` clients, each with probability size n_k / n, by systematic sampling (Madow 1949).

    With plain means the expected mean is sum_k (n_k / n) delta_k, as in scheme I of Li et al. 2020 ("On the convergence
    of FedAvg on non-IID data"), which draws with replacement and so may draw a client twice. Raises ValueError where a
    client would have to be drawn more than once.
    """

    sizes: Tensor  # [N]
    size: int
    seed: int

    def __post_init__(self) -> None:
        largest, total = int(self.sizes.max()), int(self.sizes.sum())
        if largest * self.size > total:
            raise ValueError(
                f"client {int(self.sizes.argmax())} has {largest} of all {total} examples and would be drawn more than "
                f"once in a round of {self.size}; set cohort.size to {total // largest} at most, or use uniform"
            )

    def cohort(self, round: int) -> Cohort:
        """The cohort of a round: the owners of every (n / m)-th example of the clients in random order."""
        rng, population = numpy_generator(self.seed, "cohort", round), len(self.sizes)
        order = rng.permutation(population)
        ends = np.cumsum(self.sizes.numpy()[order])
        points = (rng.random() + np.arange(self.size)) * (ends[-1] / self.size)
        inside = np.minimum(points, ends[-1] - 0.5)  # the last could be rounded up to the end
        at = np.searchsorted(ends, inside, side="right")
        return Cohort(round, tuple(sorted(order[at].tolist())), population)


@dataclass(frozen=True)
class PowerOfChoiceSampler(Sampler):
    """S_t: of ``candidates`` clients, drawn by their share of the examples, the ``size`` with the highest losses.

    Cho, Wang, Joshi 2022, "Towards understanding biased client selection in federated learning", section 4 (pi_pow-d):
    candidates are drawn without replacement, one after the other with probability n_k / n, and all of their examples
    are evaluated at the model of the round. Raises ValueError for more candidates than clients with examples.
    """

    sizes: Tensor  # [N]
    size: int
    candidates: int
    seed: int
    losses: Losses

    def __post_init__(self) -> None:
        able = int((self.sizes > 0).sum())
        if not self.size <= self.candidates <= able:
            raise ValueError(
                f"candidates={self.candidates}: a round has {self.size} clients, and {able} have examples; set it "
                "between these"
            )

    def cohort(self, round: int) -> Cohort:
        """The candidates of a round, a function of (seed, round)."""
        share = self.sizes.double().numpy() / float(self.sizes.sum())
        draw = numpy_generator(self.seed, "cohort", round).choice(len(share), self.candidates, replace=False, p=share)
        return Cohort(round, tuple(sorted(draw.tolist())), len(share))

    def chosen(self, cohort: Cohort, w: Tensor) -> Cohort:
        """The candidates with the highest losses; of equal ones the lower client, NaN last."""
        losses = self.losses(cohort, w).nan_to_num(nan=-np.inf, posinf=np.inf).tolist()
        first = sorted(zip(losses, cohort.ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return Cohort(cohort.round, tuple(sorted(k for _, k in first[: self.size])), cohort.population)


@dataclass(frozen=True)
class Participation(ABC):
    """How clients are drawn. ``plain_means``: an algorithm's weighting=auto means uniform, and examples is refused if
    ``by_size``. ``asks_losses``: clients report their losses."""

    plain_means: ClassVar[bool] = False
    by_size: ClassVar[bool] = False
    asks_losses: ClassVar[bool] = False

    @abstractmethod
    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        """Of ``size`` clients a round, of a population of ``sizes [N]``. Raises ValueError."""


@dataclass(frozen=True)
class Uniform(Participation):
    """McMahan et al. 2017, Algorithm 1."""

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return UniformSampler(len(sizes), size, seed)


@dataclass(frozen=True)
class BySize(Participation):
    """See `SizeSampler`."""

    plain_means: ClassVar[bool] = True
    by_size: ClassVar[bool] = True

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return SizeSampler(sizes, size, seed)


@dataclass(frozen=True)
class PowerOfChoice(Participation):
    """See `PowerOfChoiceSampler`."""

    plain_means: ClassVar[bool] = True
    asks_losses: ClassVar[bool] = True
    candidates: Annotated[
        int,
        Field(ge=0, description="d, clients whose losses are compared each round; 0 = 2 m, at most all"),
    ] = 0

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        candidates = self.candidates or min(2 * size, int((sizes > 0).sum()))
        return PowerOfChoiceSampler(sizes, size, candidates, seed, losses)


SAMPLERS: dict[str, type] = {"uniform": Uniform, "size": BySize, "power_of_choice": PowerOfChoice}


@dataclass(frozen=True)
class Punctual(Sampler):
    """``inner`` without the clients of a round that are ``late`` (client, round)."""

    inner: Sampler
    late: Callable[[int, int], bool]

    def cohort(self, round: int) -> Cohort:
        return self.inner.cohort(round)

    def chosen(self, cohort: Cohort, w: Tensor) -> Cohort:
        cohort = self.inner.chosen(cohort, w)
        ids = tuple(k for k in cohort.ids if not self.late(k, cohort.round))
        return Cohort(cohort.round, ids, cohort.population)


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
