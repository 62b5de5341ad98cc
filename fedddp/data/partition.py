"""Partitions: which client owns which training examples. Deterministic in the seed, drawn alike on every rank.

A partition is two arrays, not N lists: client k owns ``order[offsets[k] : offsets[k + 1]]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..rng import numpy_generator

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """``order [n]`` (example indices, client after client) and ``offsets [N + 1]``."""

    order: Ints
    offsets: Ints

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Ints:
        """Examples a client, [N]."""
        return np.diff(self.offsets)

    def indices(self, client: int) -> Ints:
        """The example indices of one client."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def of(self, clients: Ints) -> Ints:
        """The example indices of several clients, client after client, without a Python loop."""
        sizes = self.sizes[clients]
        starts = np.repeat(self.offsets[:-1][clients] - (np.cumsum(sizes) - sizes), sizes)
        return self.order[starts + np.arange(len(starts))]

    def counts(self, labels: Ints, num_classes: int) -> Ints:
        """Examples a client and label, [N, C]."""
        client = np.repeat(np.arange(self.num_clients), self.sizes)
        flat = np.bincount(client * num_classes + labels[self.order], minlength=self.num_clients * num_classes)
        return flat.reshape(self.num_clients, num_classes)


@dataclass(frozen=True)
class Partitioner(ABC):
    """A rule that deals ``labels [n]`` out to ``num_clients``; raises ValueError if the request is impossible."""

    num_clients: Annotated[int, Field(ge=0, description="N, population; 0 = as many as ranks")] = 0

    @abstractmethod
    def split(self, labels: Ints, seed: int) -> Partition: ...


def _dealt(parts: list[Ints]) -> Partition:
    return Partition(np.concatenate(parts), _offsets(np.array([len(p) for p in parts])))


def _offsets(sizes: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _even(total: int, parts: int) -> Ints:
    """``parts`` sizes that differ by at most one and sum to ``total``."""
    return np.full(parts, total // parts) + (np.arange(parts) < total % parts)


def _require(num_clients: int, examples: int, each: int = 1) -> None:
    if num_clients * each > examples:
        needs = f"at least {each} examples each" if each > 1 else "at least one example each"
        raise ValueError(
            f"data.partition.num_clients={num_clients}: {examples} examples cannot give {num_clients} clients {needs}; "
            f"ask for at most {examples // each} clients"
        )


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffled and dealt evenly: client sizes differ by at most one (McMahan et al. 2017, section 3)."""

    def split(self, labels: Ints, seed: int) -> Partition:
        _require(self.num_clients, len(labels))
        order = numpy_generator(seed, "partition").permutation(len(labels))
        return Partition(order, _offsets(_even(len(labels), self.num_clients)))


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorted by label, cut into equal shards, some shards a client (McMahan et al. 2017, section 3)."""

    shards_per_client: Annotated[int, Field(ge=1, description="label-sorted shards a client receives")] = 2

    def split(self, labels: Ints, seed: int) -> Partition:
        _require(self.num_clients, len(labels), self.shards_per_client)
        rng = numpy_generator(seed, "partition")
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        num_shards = self.num_clients * self.shards_per_client
        shards = np.split(by_label, _offsets(_even(len(labels), num_shards))[1:-1])
        dealt = rng.permutation(num_shards).reshape(self.num_clients, self.shards_per_client)
        return _dealt([np.concatenate([shards[s] for s in mine]) for mine in dealt])


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Equal sizes, label mix of each client drawn from Dir(alpha p), p the global mix (Hsu et al. 2019, section 3).

    Examples are dealt without replacement. A client whose labels are used up draws another mix from those that are
    left; so the last clients follow the first draw less closely.
    """

    alpha: Annotated[float, Field(gt=0, description="concentration: small = few labels a client")] = 0.5

    def split(self, labels: Ints, seed: int) -> Partition:
        _require(self.num_clients, len(labels))
        rng = numpy_generator(seed, "partition")
        pools = [rng.permutation(np.flatnonzero(labels == c)) for c in range(int(labels.max()) + 1)]
        left = np.array([len(pool) for pool in pools])
        prior = left / left.sum()
        parts = []
        for size in _even(len(labels), self.num_clients):
            taken = self._take(rng, size, self._mix(rng, prior), left)
            parts.append(np.concatenate([pool[n - k : n] for pool, n, k in zip(pools, left, taken, strict=True)]))
            left = left - taken
        return _dealt([rng.permutation(part) for part in parts])

    def _mix(self, rng: np.random.Generator, prior: NDArray[np.float64]) -> NDArray[np.float64]:
        present = prior > 0
        mix = np.zeros_like(prior)
        draw = rng.dirichlet(self.alpha * prior[present])
        if not np.isfinite(draw).all() or draw.sum() == 0:  # alpha so small that every gamma draw underflows
            draw = np.eye(int(present.sum()))[rng.integers(present.sum())]
        mix[present] = draw
        return mix

    def _take(self, rng: np.random.Generator, size: int, mix: NDArray[np.float64], left: Ints) -> Ints:
        """How many of each label; every pass fills the request or empties a label, so C passes are enough."""
        taken = np.zeros_like(left)
        while (missing := size - int(taken.sum())) > 0:
            odds = np.where(left > taken, mix, 0.0)
            if odds.sum() == 0:
                odds = self._mix(rng, (left - taken) / (left - taken).sum())
            taken = np.minimum(taken + rng.multinomial(missing, odds / odds.sum()), left)
        return taken


@dataclass(frozen=True)
class Quantity(Partitioner):
    """Labels alike, sizes unequal: shares of the examples drawn from Dir(alpha) (Li et al. 2022, NIID-Bench)."""

    alpha: Annotated[float, Field(gt=0, le=1e6, description="concentration: small = few clients own most")] = 0.5
    min_size: Annotated[int, Field(ge=1, description="examples every client has at least")] = 1

    def split(self, labels: Ints, seed: int) -> Partition:
        _require(self.num_clients, len(labels), self.min_size)
        rng = numpy_generator(seed, "partition")
        order = rng.permutation(len(labels))
        share = rng.dirichlet(np.full(self.num_clients, self.alpha))
        if not np.isfinite(share).all():
            share = np.eye(self.num_clients)[rng.integers(self.num_clients)]
        spare = len(labels) - self.num_clients * self.min_size
        sizes = self.min_size + np.floor(spare * share).astype(np.int64)
        sizes[np.argsort(-share)[: len(labels) - sizes.sum()]] += 1
        return Partition(order, _offsets(sizes))


PARTITIONS: dict[str, type] = {"iid": IID, "shards": Shards, "dirichlet": Dirichlet, "quantity": Quantity}
