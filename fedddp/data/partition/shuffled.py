"""Partitions that ignore labels: every client's examples are a random sample of the data, of some size."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from ...rng import numpy_generator
from .base import Ints, Partition, Partitioner, compact, even, require


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffled and divided evenly: client sizes differ by at most one (McMahan et al. 2017, section 3)."""

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels))
        order = numpy_generator(seed, "partition").permutation(len(labels))
        return Partition.dealt(order, even(len(labels), self.num_clients))


@dataclass(frozen=True)
class Quantity(Partitioner):
    """Labels alike, sizes unequal: fractions of the examples drawn from Dir(alpha) (Li et al. 2022, NIID-Bench)."""

    alpha: Annotated[float, Field(gt=0, le=1e6, description="concentration: small = few clients own most")] = 0.5
    min_size: Annotated[int, Field(ge=1, description="examples every client has at least")] = 1

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels), self.min_size)
        rng = numpy_generator(seed, "partition")
        order = rng.permutation(len(labels))
        part = rng.dirichlet(np.full(self.num_clients, self.alpha))
        if not np.isfinite(part).all():
            part = np.eye(self.num_clients)[rng.integers(self.num_clients)]
        spare = len(labels) - self.num_clients * self.min_size
        sizes = self.min_size + np.floor(spare * part).astype(np.int64)
        sizes[np.argsort(-part)[: len(labels) - sizes.sum()]] += 1
        return Partition.dealt(order, sizes)


@dataclass(frozen=True)
class Overlapping(Partitioner):
    """Equal sizes, any number of clients: ranges of one shuffled order, which repeats.

    For measuring with populations larger than the data. Starts are evenly spaced, so that every example has as many
    owners as every other (give or take one), and none has two while there are enough. Neighbours overlap most.
    """

    size: Annotated[int, Field(ge=1, description="examples a client owns")] = 60

    def split(self, labels: Ints, seed: int) -> Partition:
        n = len(labels)
        if self.size > n:
            raise ValueError(f"data.partition.size={self.size}: there are only {n} examples; ask for at most {n}")
        order = numpy_generator(seed, "partition").permutation(n)
        starts = np.arange(self.num_clients) * n // self.num_clients
        sizes = np.full(self.num_clients, self.size)
        return Partition(compact(np.concatenate([order, order[: self.size - 1]])), compact(starts), compact(sizes))
