"""Partitions drawn from the seed: regardless of labels, with few labels per client, or from Dirichlet distributions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...rng import numpy_generator
from .base import Ints, Partition, Partitioner, compact, even, ranges, require


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
    min_size: Annotated[int, Field(ge=1, le=10**9, description="examples every client has at least")] = 1

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

    size: Annotated[int, Field(ge=1, le=10**9, description="examples a client owns")] = 60

    def split(self, labels: Ints, seed: int) -> Partition:
        n = len(labels)
        if self.size > n:
            raise ValueError(f"data.partition.size={self.size}: there are only {n} examples; ask for at most {n}")
        order = numpy_generator(seed, "partition").permutation(n)
        starts = np.arange(self.num_clients) * n // self.num_clients
        sizes = np.full(self.num_clients, self.size)
        return Partition(compact(np.concatenate([order, order[: self.size - 1]])), compact(starts), compact(sizes))


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorted by label, cut into equal shards, some shards per client (McMahan et al. 2017, section 3)."""

    by_label: ClassVar[bool] = True
    shards_per_client: Annotated[int, Field(ge=1, le=10**9, description="label-sorted shards per client")] = 2

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

    by_label: ClassVar[bool] = True
    labels_per_client: Annotated[int, Field(ge=1, le=10**9, description="labels per client")] = 2

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

    by_label: ClassVar[bool] = True
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


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Equal sizes, label mix of each client drawn from Dir(alpha p), p the global mix (Hsu et al. 2019, section 3).

    The parameter of label c is alpha p_c, so that they sum to alpha. Papers that write Dir(alpha) with the same alpha
    for each of C labels (FedDyn, Acar et al. 2021) mean C alpha here, where labels are balanced: their 0.3 for ten
    classes is alpha = 3.

    Examples are dealt without replacement. A client whose labels are used up draws another mix from those that are
    left; so the last clients follow the first draw less closely.
    """

    by_label: ClassVar[bool] = True
    alpha: Annotated[
        float,
        Field(
            gt=0,
            le=1e9,
            description="concentration of Dir(alpha p): small = few labels per client; C times a paper's Dir(alpha)",
        ),
    ] = 0.5

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels))
        rng = numpy_generator(seed, "partition")
        pools = [rng.permutation(np.flatnonzero(labels == c)) for c in range(int(labels.max()) + 1)]
        left = np.array([len(pool) for pool in pools])
        ends, prior = np.cumsum(left), left / left.sum()
        sizes = even(len(labels), self.num_clients)
        taken = np.empty((self.num_clients, len(pools)), dtype=np.int64)  # [N, C]
        for row, size in zip(taken, sizes.tolist(), strict=True):  # in turn: what is left depends on who came before
            row[:] = self._take(rng, size, self._mix(rng, prior), left)
            left -= row
        order = np.concatenate(pools)[ranges((ends - np.cumsum(taken, axis=0)).ravel(), taken.ravel())]
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


ATTEMPTS = 1000


@dataclass(frozen=True)
class DirichletLabels(Partitioner):
    """Unequal sizes: each label's examples are divided over the clients by Dir(alpha) (Li et al. 2022, NIID-Bench).

    Label after label, and a client that has n / N examples already gets none of the labels that follow; this is
    repeated until every client has ``min_size`` examples. FedNova (Wang et al. 2020), FedMA and NIID-Bench call this
    Dirichlet; `Dirichlet` draws each client's labels instead, and keeps sizes equal.
    """

    by_label: ClassVar[bool] = True
    alpha: Annotated[float, Field(gt=0, le=1e6, description="concentration: small = few owners per label")] = 0.5
    min_size: Annotated[int, Field(ge=1, le=10**9, description="examples every client has at least")] = 10

    def split(self, labels: Ints, seed: int) -> Partition:
        require(self.num_clients, len(labels), self.min_size)
        rng = numpy_generator(seed, "partition")
        totals = np.bincount(labels)
        for _ in range(ATTEMPTS):
            taken = self._divide(rng, totals)
            if taken is not None and taken.sum(axis=1).min() >= self.min_size:
                break
        else:
            raise ValueError(
                f"data.partition.min_size={self.min_size}: {ATTEMPTS} draws with alpha={self.alpha} left some of the "
                f"{self.num_clients} clients with less; ask for less, for fewer clients, or for a larger alpha"
            )
        piles = np.concatenate([rng.permutation(np.flatnonzero(labels == c)) for c in range(len(totals))])
        firsts = (np.cumsum(totals) - totals) + np.cumsum(taken, axis=0) - taken  # [N, C], into piles
        return Partition.dealt(piles[ranges(firsts.ravel(), taken.ravel())], taken.sum(axis=1))

    def _divide(self, rng: np.random.Generator, totals: Ints) -> Ints | None:
        """How many of each label, [N, C]; None where a draw leaves a label without an owner."""
        taken = np.zeros((self.num_clients, len(totals)), dtype=np.int64)
        sizes = np.zeros(self.num_clients, dtype=np.int64)  # so far
        for label, total in enumerate(totals):
            part = rng.dirichlet(np.full(self.num_clients, self.alpha))
            part *= sizes < totals.sum() / self.num_clients
            if not np.isfinite(part).all() or part.sum() == 0:
                return None
            cuts = (np.cumsum(part / part.sum()) * total).astype(np.int64)
            cuts[np.flatnonzero(part)[-1] :] = total  # no stray example for those behind, by rounding
            taken[:, label] = np.diff(cuts, prepend=0)
            sizes += taken[:, label]
        return taken
