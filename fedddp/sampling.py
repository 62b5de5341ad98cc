"""Which clients take part in a round, and which rank trains each of them. Drawn alike everywhere, nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .rng import numpy_generator
from .types import Cohort


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


def home_rank(client: int, world_size: int) -> int:
    """The rank that holds a client's examples and state."""
    return client % world_size


def assign(cohort: Cohort, rank: int, world_size: int) -> list[int]:
    """The clients of ``cohort`` that ``rank`` trains: those whose data it holds."""
    return [k for k in cohort.ids if home_rank(k, world_size) == rank]


def blocks(ids: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
    """``ids`` in runs of at most ``width``, the clients trained at once."""
    for start in range(0, len(ids), width):
        yield tuple(ids[start : start + width])
