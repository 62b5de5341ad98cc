"""Partitions that give each client few labels."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...rng import numpy_generator
from .base import Ints, Partition, Partitioner, even, ranges, require


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorted by label, cut into equal shards, some shards per client (McMahan et al. 2017, section 3)."""

    shards_per_client: Annotated[int, Field(ge=1, description="label-sorted shards per client")] = 2

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels), self.shards_per_client)
        rng = numpy_generator(seed, "partition")
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        num_shards = self.num_clients * self.shards_per_client
        sizes = even(len(labels), num_shards)
        dealt = rng.permutation(num_shards)  # client k receives the k-th run of shards_per_client of them
        order = by_label[ranges((np.cumsum(sizes) - sizes)[dealt], sizes[dealt])]
        return Partition.dealt(order, sizes[dealt].reshape(self.num_clients, -1).sum(axis=1))


@dataclass(frozen=True)
class Labels(Partitioner):
    """A given number of labels per client ("#C = k"), labels split evenly among owners (Li et al. 2022, NIID-Bench).

    Every label has an owner: client i begins with label i (mod C; with fewer clients than labels, with every N-th), and
    draws the rest of its labels from those that it does not have. Sizes are unequal: labels have unequal numbers of
    owners.
    """

    labels_per_client: Annotated[int, Field(ge=1, description="labels per client")] = 2

    def split(self, labels: Ints, seed: int) -> Partition:
        present = np.unique(labels)
        owned = self._owned(numpy_generator(seed, "partition", 1), len(present))  # bool [N, C]
        rng = numpy_generator(seed, "partition")
        hands: list[list[Ints]] = [[] for _ in owned]
        for label, owners in zip(present, owned.T, strict=True):
            examples = rng.permutation(np.flatnonzero(labels == label))
            if owners.sum() > len(examples):
                raise ValueError(
                    f"data.partition.num_clients={self.num_clients}: {owners.sum()} clients would own "
                    f"the {len(examples)} examples of label {label}; ask for fewer clients, or fewer labels_per_client"
                )
            for client, part in zip(np.flatnonzero(owners), np.array_split(examples, owners.sum()), strict=True):
                hands[client].append(part)
        order = [np.concatenate(hand) for hand in hands]
        return Partition.dealt(np.concatenate(order), np.array([len(own) for own in order]))

    def _owned(self, rng: np.random.Generator, num_labels: int) -> NDArray[np.bool_]:
        """Which labels each client owns, bool [N, C]: k in every row, one or more in every column."""
        n, k = self.num_clients, self.labels_per_client
        if k > num_labels:
            raise ValueError(f"data.partition.labels_per_client={k}: the data have {num_labels}; ask for at most that")
        if n * k < num_labels:
            raise ValueError(
                f"data.partition.labels_per_client={k}: {n} clients of {k} cannot own all {num_labels} labels; "
                f"ask for at least {-(-num_labels // n)}, or for {-(-num_labels // k)} clients"
            )
        owned = np.zeros((n, num_labels), dtype=bool)
        for client, row in enumerate(owned):
            row[client % num_labels :: n] = True
            others = np.flatnonzero(~row)
            row[rng.choice(others, k - row.sum(), replace=False)] = True
        return owned


@dataclass(frozen=True)
class Similarity(Partitioner):
    """A fraction of the examples is dealt at random, the rest in the order of labels (Karimireddy et al. 2020,
    section 7): 0 gives every client one or two labels, 1 is IID. Client sizes differ by at most one."""

    similarity: Annotated[float, Field(ge=0, le=1, description="fraction of a client's examples that is IID")] = 0.1

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels))
        shuffled = numpy_generator(seed, "partition").permutation(len(labels))
        mixed, rest = np.split(shuffled, [round(self.similarity * len(labels))])
        by_label = rest[np.argsort(labels[rest], kind="stable")]
        sizes = even(len(mixed), self.num_clients), even(len(rest), self.num_clients)[::-1]
        parts = [np.split(order, np.cumsum(s)[:-1]) for order, s in zip((mixed, by_label), sizes, strict=True)]
        order = np.concatenate([part for both in zip(*parts, strict=True) for part in both])
        return Partition.dealt(order, sizes[0] + sizes[1])
