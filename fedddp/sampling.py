"""Draw the clients of a round and assign them to ranks; every rank draws the same, so nothing is sent."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from .rng import numpy_generator
from .types import Cohort

Losses = Callable[[Cohort, Tensor], Tensor]
"""``(cohort, w [D])`` to the mean loss of each client of the cohort, [m]; a collective: all ranks call it."""


class Sampler(Protocol):
    """Draws the cohort S_t before the round begins."""

    def cohort(self, round: int) -> Cohort:
        """Return the clients drawn for a round (0-based), a function of the round."""
        ...

    def chosen(self, cohort: Cohort, w: Tensor) -> Cohort:
        """Return the drawn clients that take part, given the model ``w [D]``; the same on every rank."""
        return cohort


@dataclass(frozen=True)
class UniformSampler(Sampler):
    """S_t: ``size`` of ``population`` clients, uniformly without replacement (McMahan et al. 2017, Algorithm 1)."""

    population: int
    size: int
    seed: int

    def cohort(self, round: int) -> Cohort:
        """Return the cohort of a round (0-based), a function of (seed, round)."""
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
        """Return the cohort of a round: the owners of every (n / m)-th example, the clients in random order."""
        rng, population = numpy_generator(self.seed, "cohort", round), len(self.sizes)
        order = rng.permutation(population)
        ends = np.cumsum(self.sizes.numpy()[order])
        points = (rng.random() + np.arange(self.size)) * (ends[-1] / self.size)
        inside = np.minimum(points, ends[-1] - 0.5)  # the last could be rounded up to the end
        at = np.searchsorted(ends, inside, side="right")
        return Cohort(round, tuple(sorted(order[at].tolist())), population)


@dataclass(frozen=True)
class PowerOfChoiceSampler(Sampler):
    """S_t: of ``candidates`` clients, drawn in proportion to their examples, the ``size`` with the highest losses.

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
        """Return the candidates of a round, a function of (seed, round)."""
        p = self.sizes.double().numpy() / float(self.sizes.sum())
        draw = numpy_generator(self.seed, "cohort", round).choice(len(p), self.candidates, replace=False, p=p)
        return Cohort(round, tuple(sorted(draw.tolist())), len(p))

    def chosen(self, cohort: Cohort, w: Tensor) -> Cohort:
        """Return the candidates with the highest losses; of equal ones the lower client first, NaN last."""
        losses = self.losses(cohort, w).nan_to_num(nan=-np.inf, posinf=np.inf).tolist()
        first = sorted(zip(losses, cohort.ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return Cohort(cohort.round, tuple(sorted(k for _, k in first[: self.size])), cohort.population)


@dataclass(frozen=True)
class Participation(ABC):
    """Base class of the choices of ``cohort.sampler``.

    Attributes:
        plain_means: whether an algorithm's weighting=auto means uniform.
        by_size: whether clients are drawn in proportion to their examples, so that weighting=examples is refused.
        accountable: whether the accountants of privacy know the probability with which a client is drawn.
        asks_losses: whether clients report their losses.
    """

    plain_means: ClassVar[bool] = False
    by_size: ClassVar[bool] = False
    accountable: ClassVar[bool] = False
    asks_losses: ClassVar[bool] = False

    @abstractmethod
    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        """Return the sampler of ``size`` of the clients with ``sizes [N]`` examples. Raises ValueError."""


@dataclass(frozen=True)
class Uniform(Participation):
    """Uniform without replacement (McMahan et al. 2017, Algorithm 1)."""

    accountable: ClassVar[bool] = True

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return UniformSampler(len(sizes), size, seed)


@dataclass(frozen=True)
class BySize(Participation):
    """In proportion to the number of examples."""

    plain_means: ClassVar[bool] = True
    by_size: ClassVar[bool] = True

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return SizeSampler(sizes, size, seed)


@dataclass(frozen=True)
class PowerOfChoice(Participation):
    """The highest losses of a few candidates (Cho, Wang, Joshi 2022)."""

    plain_means: ClassVar[bool] = True
    asks_losses: ClassVar[bool] = True
    candidates: Annotated[
        int,
        Field(ge=0, le=10_000_000, description="d, clients whose losses are compared per round; 0 = 2 m, at most all"),
    ] = 0

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        candidates = self.candidates or min(2 * size, int((sizes > 0).sum()))
        return PowerOfChoiceSampler(sizes, size, candidates, seed, losses)


SAMPLERS: dict[str, type] = {"uniform": Uniform, "size": BySize, "power_of_choice": PowerOfChoice}


@dataclass(frozen=True)
class Punctual(Sampler):
    """``inner`` without the clients for which ``late(client, round)`` holds."""

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
    """Assigns a cohort's clients to a rank.

    Attributes:
        sizes: the number of examples of each client, [N].
        work: the examples, padding included, that clients of sizes [m] train on, [m].
        rank: this rank.
        world_size: the number of ranks.
        bound: whether clients stay on their home rank, since only that has their data or their state.
        least: how many clients this rank trains at least, of its own: after the cohort's, others of equal work.
    """

    sizes: Tensor  # [N]
    work: Callable[[Tensor], Tensor]
    rank: int
    world_size: int
    bound: bool
    least: int = 0

    def mine(self, cohort: Cohort, load: int = 0) -> tuple[int, ...]:
        """Return this rank's clients, most work first; rank 0 has other work worth ``load`` examples."""
        work = self.work(self.sizes[list(cohort.ids)])
        if self.bound:
            mine = at_home(cohort, work, self.world_size)[self.rank]
            idle = (k for k in residents(len(self.sizes), self.rank, self.world_size) if k not in mine)
            return (*mine, *islice(idle, max(0, self.least - len(mine))))
        return assign(cohort, work, self.world_size, load=load)[self.rank]


def home_rank(client: int, world_size: int) -> int:
    """Return the rank that keeps a client's state, and its examples unless every rank has them all."""
    return client % world_size


def residents(population: int, rank: int, world_size: int) -> range:
    """Return the clients whose `home_rank` is ``rank``."""
    return range(rank, population, world_size)


def assign(cohort: Cohort, work: Sequence[int] | Tensor, world_size: int, *, load: int = 0) -> list[tuple[int, ...]]:
    """Balance a cohort over the ranks: longest first, each to the rank with the least work (Graham 1969, LPT).

    Ties go to the lower client id and to the lower rank.

    Args:
        cohort: the clients.
        work: the work of each client, [m].
        world_size: the number of ranks.
        load: other work of rank 0, such as its evaluation.

    Returns:
        The clients of each rank.
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
    """Return the clients of each rank if each stays on its home rank; longest first, as `assign` does."""
    mine: list[list[int]] = [[] for _ in range(world_size)]
    for _, client in _longest_first(cohort, work):
        mine[home_rank(client, world_size)].append(client)
    return [tuple(ids) for ids in mine]


def _longest_first(cohort: Cohort, work: Sequence[int] | Tensor) -> list[tuple[int, int]]:
    """Return (work, client) pairs, most work first, of equal ones the lower id first."""
    listed = work.tolist() if isinstance(work, Tensor) else work
    return sorted(zip(listed, cohort.ids, strict=True), key=lambda pair: (-pair[0], pair[1]))


def blocks(ids: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
    """Divide ``ids`` into as few blocks of at most ``width`` clients as possible; a block is trained together.

    Their lengths differ by at most one: a short last block would take the steps of a full one for a few clients.
    """
    runs = -(-len(ids) // width)
    for run in range(runs):
        yield tuple(ids[run * len(ids) // runs : (run + 1) * len(ids) // runs])
