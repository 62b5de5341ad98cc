"""Partitions: which client owns which training examples. Deterministic in the seed, drawn alike on every rank.

A partition is three arrays, not N lists: client k owns ``order[starts[k] : starts[k] + sizes[k]]``. Ranges may overlap,
so that a population can be larger than the data: a client costs two numbers, wherever its examples are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..rng import numpy_generator

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Partition:
    """``order [n]`` (example indices), ``starts [N]`` and ``sizes [N]``: where in it each client's range lies."""

    order: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def dealt(cls, order: Ints, sizes: Ints) -> Partition:
        """Client after client, back to back: no example of ``order`` has two owners."""
        return cls(_compact(order), _compact(np.cumsum(sizes) - sizes), _compact(sizes))

    @property
    def num_clients(self) -> int:
        return len(self.starts)

    @property
    def shares(self) -> bool:
        """Whether some example has several owners: clients have more examples together than there are."""
        return int(self.sizes.sum()) > len(np.unique(self.order))

    def indices(self, client: int) -> Ints:
        """The example indices of one client."""
        return self.order[self.starts[client] : self.starts[client] + self.sizes[client]]

    def of(self, clients: Ints) -> Ints:
        """The example indices of several clients, client after client, without a Python loop."""
        return self.order[_ranges(self.starts[clients], self.sizes[clients])]

    def counts(self, labels: Ints, num_classes: int, clients: Ints | None = None) -> Ints:
        """Examples a client and label, [k, C], of ``clients [k]`` or of everybody."""
        clients = np.arange(self.num_clients) if clients is None else clients
        row = np.repeat(np.arange(len(clients)), self.sizes[clients])
        flat = np.bincount(row * num_classes + labels[self.of(clients)], minlength=len(clients) * num_classes)
        return flat.reshape(len(clients), num_classes)

    def held_out(self, share: float, seed: int) -> tuple[Partition, Partition]:
        """A partition for training and one of what is kept out of it: a random ``share`` of each client's examples.

        Rounded, but at least one of two; a client with one trains on it. Where a rank sees its own clients only, it
        finds for them what others would. Raises ValueError where clients share examples: another would train on them.
        """
        sizes = self.sizes.astype(np.int64)
        owner, before = np.repeat(np.arange(self.num_clients), sizes), np.cumsum(sizes) - sizes
        key = numpy_generator(seed, "holdout").random(len(owner))
        shuffled = np.lexsort((key, owner)) - before[owner]  # each client's own positions, in random order
        at = _ranges(self.starts.astype(np.int64), sizes)
        here = at < len(self.order)
        if len(np.unique(self.order[at[here]])) < here.sum():
            raise ValueError(
                f"evaluate.holdout={share:g}: clients share examples here, so that one would train on what another "
                "holds out; use a partition without overlap, or evaluate.holdout=0"
            )
        order = self.order.copy()
        order[at[here]] = self.order[(self.starts[owner] + shuffled)[here]]
        held = np.minimum(np.maximum(np.rint(share * sizes), 1), np.maximum(sizes - 1, 0)).astype(np.int64)
        if not held.any():
            raise ValueError(f"evaluate.holdout={share:g}: no client has two examples, so that none can keep one apart")
        left = replace(self, order=order, sizes=_compact(sizes - held))
        return left, replace(left, starts=_compact(self.starts + left.sizes), sizes=_compact(held))

    def excerpt(self, labels: Ints, num_classes: int, most: int = 60) -> Excerpt:
        """At most ``most`` clients, evenly spread over the population, the first and the last among them."""
        clients = self._spread(most)
        return Excerpt(clients, self.counts(labels, num_classes, clients), self.num_clients)

    def fingerprint(self, labels: Ints) -> str:
        """A sum over the labels and who owns them, equal where these are."""
        owners = hashlib.sha256()
        for numbers in (labels, self.order, self.starts, self.sizes):
            owners.update(np.ascontiguousarray(numbers).data)  # in place: a million clients are megabytes
        return owners.hexdigest()

    def _spread(self, most: int) -> Ints:
        return np.unique(np.linspace(0, self.num_clients - 1, min(self.num_clients, most)).astype(int))


@dataclass(frozen=True)
class Excerpt:
    """Who owns what, as far as an eye can take it in: ``counts [k, C]`` of ``clients [k]`` out of ``num_clients``.

    Where the labels are not known, ``by_label`` is false and ``counts [k, 1]`` are the sizes.
    """

    clients: Ints
    counts: Ints
    num_clients: int
    by_label: bool = True


@dataclass(frozen=True)
class Partitioner(ABC):
    """A rule that deals ``labels [n]`` out to ``num_clients``; raises ValueError if the request is impossible."""

    num_clients: Annotated[int, Field(ge=0, description="N, population; 0 = as many as ranks")] = 0

    @abstractmethod
    def split(self, labels: Ints, seed: int) -> Partition: ...


def _compact(numbers: Ints) -> Ints:
    """The same in 4 bytes each where they fit: a million clients are 8 MB instead of 16."""
    return numbers.astype(np.int32) if numbers.max(initial=0) <= np.iinfo(np.int32).max else numbers


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """``start, start + 1, ..., start + size - 1`` of one range after the other."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


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
        return Partition.dealt(order, _even(len(labels), self.num_clients))


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
        sizes = _even(len(labels), num_shards)
        dealt = rng.permutation(num_shards)  # client k receives the k-th run of shards_per_client of them
        order = by_label[_ranges((np.cumsum(sizes) - sizes)[dealt], sizes[dealt])]
        return Partition.dealt(order, sizes[dealt].reshape(self.num_clients, -1).sum(axis=1))


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
        ends, prior = np.cumsum(left), left / left.sum()
        sizes = _even(len(labels), self.num_clients)
        taken = np.empty((self.num_clients, len(pools)), dtype=np.int64)  # [N, C]
        for row, size in zip(taken, sizes.tolist(), strict=True):  # in turn: what is left depends on who came before
            row[:] = self._take(rng, size, self._mix(rng, prior), left)
            left -= row
        order = np.concatenate(pools)[_ranges((ends - np.cumsum(taken, axis=0)).ravel(), taken.ravel())]
        for part in np.split(order, np.cumsum(sizes)[:-1]):
            rng.shuffle(part)  # a view
        return Partition.dealt(order, sizes)

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
        return Partition.dealt(order, sizes)


@dataclass(frozen=True)
class Similarity(Partitioner):
    """A share of the examples is dealt at random, the rest in the order of their labels (Karimireddy et al. 2020,
    section 7): 0 gives every client one or two labels, 1 is IID. Client sizes differ by at most one."""

    similarity: Annotated[float, Field(ge=0, le=1, description="share of a client's examples that is IID")] = 0.1

    def split(self, labels: Ints, seed: int) -> Partition:
        _require(self.num_clients, len(labels))
        shuffled = numpy_generator(seed, "partition").permutation(len(labels))
        mixed, rest = np.split(shuffled, [round(self.similarity * len(labels))])
        by_label = rest[np.argsort(labels[rest], kind="stable")]
        sizes = _even(len(mixed), self.num_clients), _even(len(rest), self.num_clients)[::-1]
        parts = [np.split(order, np.cumsum(s)[:-1]) for order, s in zip((mixed, by_label), sizes, strict=True)]
        order = np.concatenate([part for both in zip(*parts, strict=True) for part in both])
        return Partition.dealt(order, sizes[0] + sizes[1])


@dataclass(frozen=True)
class Overlapping(Partitioner):
    """Equal sizes, and as many clients as one likes: stretches of one shuffled order that starts over at its end.

    For measuring with populations larger than the data. Starts are evenly spaced, so that every example has as many
    owners as every other (give or take one), and nobody shares while there is enough for all. Neighbours share most.
    """

    size: Annotated[int, Field(ge=1, description="examples a client owns")] = 60

    def split(self, labels: Ints, seed: int) -> Partition:
        n = len(labels)
        if self.size > n:
            raise ValueError(f"data.partition.size={self.size}: there are only {n} examples; ask for at most {n}")
        order = numpy_generator(seed, "partition").permutation(n)
        starts = np.arange(self.num_clients) * n // self.num_clients
        sizes = np.full(self.num_clients, self.size)
        return Partition(_compact(np.concatenate([order, order[: self.size - 1]])), _compact(starts), _compact(sizes))


PARTITIONS: dict[str, type] = {
    "iid": IID,
    "shards": Shards,
    "dirichlet": Dirichlet,
    "quantity": Quantity,
    "similarity": Similarity,
    "overlapping": Overlapping,
}
