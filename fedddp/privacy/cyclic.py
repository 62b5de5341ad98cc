"""Cohorts in a fixed order, in which every client has its turn before one has its next, and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..rng import numpy_generator
from ..sampling import Sampler
from ..types import Cohort
from .budget import ClientBudget, Limits


@dataclass(frozen=True)
class CyclicSampler(Sampler):
    """S_t: the next ``size`` clients of an order drawn once from ``seed``, and so on in circles.

    Two participations of a client are floor(population / size) releases apart or more. A round that was released and
    lost, and is done again, is another release: so the turn is that of ``released``, how many there were, not of the
    round.
    """

    population: int
    size: int
    seed: int
    released: Callable[[], int]

    def cohort(self, round: int) -> Cohort:
        """Return the cohort of the next release, whatever the round; ids ascend."""
        first = self.released() * self.size
        ids = sorted(self._order[(first + i) % self.population] for i in range(self.size))
        return Cohort(round, tuple(ids), self.population)

    @cached_property
    def _order(self) -> list[int]:
        return numpy_generator(self.seed, "cyclic cohorts").permutation(self.population).tolist()


class CyclicBudget(ClientBudget):
    """Client level with cohorts in a fixed order, and noise that may be correlated (`fedddp.privacy.mechanisms`).

    A client takes part in one of ``separation`` = b releases at most, so in k = ceil(n / b) of n: k compositions
    without sampling, by the closed form of the Gaussian mechanism.
    """

    def __init__(self, separation: int, limits: Limits) -> None:
        super().__init__(1.0, limits)
        self._separation = separation
        self.adjacency = "with or without the updates of one client; the number of clients is public"
        self.sampling = f"fixed public cohorts, a client in one of {separation} releases at most; no sampling assumed"

    def _compositions(self, participations: Tensor) -> Tensor:
        return -(-participations // self._separation)
