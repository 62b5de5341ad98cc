"""The interface of partitions, which assign training examples to clients: functions of the seed, equal on every rank.

A partition is three arrays, not N lists: client k owns ``order[starts[k] : starts[k] + sizes[k]]``. Ranges may overlap,
so that a population can be larger than the data: a client costs two numbers, wherever its examples are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ...registry.choice import Off
from ...rng import numpy_generator
from ..datasets import Examples

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
        return cls(compact(order), compact(np.cumsum(sizes) - sizes), compact(sizes))

    @property
    def num_clients(self) -> int:
        return len(self.starts)

    @property
    def overlaps(self) -> bool:
        """Whether an example has several owners."""
        end = len(self.order) + 1
        opened, closed = np.bincount(self.starts, minlength=end), np.bincount(self.starts + self.sizes, minlength=end)
        depth = np.cumsum(opened - closed)[:-1]  # how many own each position of the order
        owned = self.order[depth > 0]
        return bool((depth > 1).any()) or len(np.unique(owned)) < len(owned)

    def check(self, examples: int) -> None:
        """Raise ValueError unless every range holds numbers of the ``examples`` training examples, none twice."""
        for name, numbers in (("order", self.order), ("starts", self.starts), ("sizes", self.sizes)):
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise ValueError(f"{name} is {numbers.dtype} {list(numbers.shape)}; give whole numbers [n]")
        starts, sizes = self.starts.astype(np.int64), self.sizes.astype(np.int64)
        if len(starts) != len(sizes) or not sizes.any():
            raise ValueError(f"{len(starts)} clients own {sizes.sum()} examples; give every client some")
        beyond = (starts < 0) | (sizes < 0) | (starts + sizes > len(self.order))
        if beyond.any():
            k = int(beyond.argmax())
            raise ValueError(f"client {k} starts at {starts[k]} with {sizes[k]} examples; order has {len(self.order)}")
        outside = (self.order < 0) | (self.order >= examples)
        if outside.any():
            raise ValueError(
                f"example {self.order[outside][0]} does not exist, the {examples} training examples are numbered from "
                "0; was it made for another dataset?"
            )
        before = _where_before(self.order.astype(np.int64))  # a range holds one twice if it began before the first
        latest = np.maximum.accumulate(before)[starts + sizes - 1]
        twice = (sizes > 0) & (latest >= starts)
        if twice.any():
            k = int(twice.argmax())
            example = self.order[latest[k]]
            raise ValueError(f"client {k} has example {example} more than once; take it out")

    def indices(self, client: int) -> Ints:
        """The example indices of one client."""
        return self.order[self.starts[client] : self.starts[client] + self.sizes[client]]

    def of(self, clients: Ints) -> Ints:
        """The example indices of several clients, client after client, without a Python loop."""
        return self.order[ranges(self.starts[clients], self.sizes[clients])]

    def counts(self, labels: Ints, num_classes: int, clients: Ints | None = None) -> Ints:
        """Examples a client and label, [k, C], of ``clients [k]`` or of everybody."""
        clients = np.arange(self.num_clients) if clients is None else clients
        row = np.repeat(np.arange(len(clients)), self.sizes[clients])
        flat = np.bincount(row * num_classes + labels[self.of(clients)], minlength=len(clients) * num_classes)
        return flat.reshape(len(clients), num_classes)

    def held_out(self, fraction: float, seed: int) -> tuple[Partition, Partition]:
        """A partition for training and one of held-out examples: a random ``fraction`` of each client's.

        Rounded, but at least one of two; a client with one trains on it. A rank that has its own clients' examples only
        finds the same for these. Raises ValueError if clients' examples overlap: another would train on them.
        """
        sizes = self.sizes.astype(np.int64)
        owner, before = np.repeat(np.arange(self.num_clients), sizes), np.cumsum(sizes) - sizes
        key = numpy_generator(seed, "holdout").random(len(owner))
        shuffled = np.lexsort((key, owner)) - before[owner]  # each client's own positions, in random order
        at = ranges(self.starts.astype(np.int64), sizes)
        here = at < len(self.order)
        if len(np.unique(self.order[at[here]])) < here.sum():
            raise ValueError(
                f"evaluate.holdout={fraction:g}: clients' examples overlap here, so that one would train on what "
                "another holds out; use a partition without overlap, or evaluate.holdout=0"
            )
        order = self.order.copy()
        order[at[here]] = self.order[(self.starts[owner] + shuffled)[here]]
        held = np.minimum(np.maximum(np.rint(fraction * sizes), 1), np.maximum(sizes - 1, 0)).astype(np.int64)
        if not held.any():
            raise ValueError(
                f"evaluate.holdout={fraction:g}: no client has two examples, so that none can hold one out"
            )
        left = replace(self, order=order, sizes=compact(sizes - held))
        return left, replace(left, starts=compact(self.starts + left.sizes), sizes=compact(held))

    def excerpt(self, labels: Ints | None, num_classes: int, most: int = 60) -> Excerpt:
        """At most ``most`` clients, evenly spread over the population, the first and the last among them.

        ``labels [n]``: the class of each example; None where there are no classes.
        """
        clients = self._spread(most)
        if labels is None:
            return Excerpt(clients, self.sizes[clients, None], self.num_clients, by_label=False)
        return Excerpt(clients, self.counts(labels, num_classes, clients), self.num_clients)

    def fingerprint(self, labels: Ints) -> str:
        """A sum over the targets (of any kind) and who owns them, equal where these are."""
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

    def without_labels(self) -> Excerpt:
        """Return the sizes alone: which labels a client owns is its secret under differential privacy."""
        return replace(self, counts=self.counts.sum(axis=1, keepdims=True), by_label=False)


@dataclass(frozen=True)
class Partitioner(ABC):
    """A rule that deals ``labels [n]`` out to ``num_clients``; raises ValueError if the request is impossible."""

    num_clients: Annotated[int, Field(ge=0, le=10_000_000, description="N, population; 0 = as many as ranks")] = 0
    seed: Annotated[
        Annotated[int, Field(ge=0, le=2**63 - 1)] | None,
        Off,
        Field(description="seed of who owns what, apart from all else (default: run.seed)"),
    ] = field(default=None, kw_only=True)

    draws: ClassVar[bool] = True
    """Whether anything is drawn at random."""
    by_label: ClassVar[bool] = False
    """Whether the examples are dealt out by their classes."""

    def __post_init__(self) -> None:
        if self.seed is not None and not self.draws:
            raise ValueError(f"seed={self.seed}: nothing is drawn at random here; leave it out, or write seed=off")

    def population(self, world_size: int) -> int:
        """N, where ``num_clients`` is 0."""
        return self.num_clients or world_size

    def owners(self, examples: Examples, seed: int) -> Partition:
        """The partition of ``examples``, by its own seed where it has one, else by the run's ``seed``.

        Raises ValueError, also for what a rule of the user's returns that is no partition of them.
        """
        partition = self.deal(examples, seed if self.seed is None else self.seed)
        try:
            partition.check(len(examples))
        except ValueError as error:
            raise ValueError(f"data.partition: {type(self).__name__} is not a partition: {error}") from None
        return partition

    def deal(self, examples: Examples, seed: int) -> Partition:
        """The partition of ``examples``. A rule that looks at more than labels overrides this."""
        if self.by_label and (examples.y.dtype != torch.int64 or examples.y.dim() != 1):
            raise ValueError(
                f"data.partition: {type(self).__name__} deals examples out by their classes, which these targets are "
                "not; use iid, sizes or natural"
            )
        return self.split(examples.y.numpy(), seed)

    @abstractmethod
    def split(self, labels: Ints, seed: int) -> Partition: ...


def _where_before(numbers: Ints) -> Ints:
    """For each position the one before it that holds the same number, -1 where there is none."""
    by_number = np.argsort(numbers, kind="stable")
    same = np.diff(numbers[by_number]) == 0
    before = np.full(len(numbers), -1)
    before[by_number[1:][same]] = by_number[:-1][same]
    return before


def compact(numbers: Ints) -> Ints:
    """The same in 4 bytes each where they fit: a million clients are 8 MB instead of 16."""
    return numbers.astype(np.int32) if numbers.max(initial=0) <= np.iinfo(np.int32).max else numbers


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """``start, start + 1, ..., start + size - 1`` of one range after the other."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


def even(total: int, parts: int) -> Ints:
    """``parts`` sizes that differ by at most one and sum to ``total``."""
    return np.full(parts, total // parts) + (np.arange(parts) < total % parts)


def require(num_clients: int, examples: int, each: int = 1) -> None:
    if num_clients * each > examples:
        needs = f"at least {each} examples each" if each > 1 else "at least one example each"
        raise ValueError(
            f"data.partition.num_clients={num_clients}: {examples} examples cannot give {num_clients} clients {needs}; "
            f"ask for at most {examples // each} clients"
        )


def fold_sizes(sizes: Ints, fold: int, folds: int) -> Ints:
    """How many of each client's examples are in ``fold``, [N]; folds of a client differ by at most one example."""
    return sizes // folds + (fold < sizes % folds)


def without_fold(
    partition: Partition, fold: int, folds: int, *, seed: int, most: int = 0
) -> tuple[Partition, dict[int, Ints]]:
    """``partition`` without ``fold`` of each client's examples, and the rows of that fold by client.

    A client's examples are shuffled by (seed, client) and cut into ``folds`` parts: folds of one seed are disjoint and
    together are all. ``most``: of so many examples a client, if it has more (0 = all). Where the examples of some
    clients are elsewhere (data that lie divided), their sizes are known all the same.
    """
    sizes = np.minimum(partition.sizes, most) if most else partition.sizes
    here = np.flatnonzero(partition.starts.astype(np.int64) + partition.sizes <= len(partition.order)).tolist()
    kept, held = [partition.order[:0]], {}
    starts = np.zeros(partition.num_clients, dtype=np.int64)
    for client in here:
        shuffled = numpy_generator(seed, "folds", client).permutation(partition.indices(client))[: sizes[client]]
        parts = np.array_split(shuffled, folds)
        starts[client] = sum(map(len, kept))
        kept.append(np.concatenate([*parts[:fold], *parts[fold + 1 :], shuffled[:0]]))
        held[client] = parts[fold]
    order = np.concatenate(kept)
    elsewhere = np.ones(partition.num_clients, dtype=bool)
    elsewhere[here] = False
    starts[elsewhere] = len(order)
    return replace(partition, order=order, starts=starts, sizes=sizes - fold_sizes(sizes, fold, folds)), held
