"""Partitions by Dirichlet distributions: of each client's labels, or of each label's owners."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...rng import numpy_generator
from .base import Ints, Partition, Partitioner, even, ranges, require


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Equal sizes, label mix of each client drawn from Dir(alpha p), p the global mix (Hsu et al. 2019, section 3).

    The parameter of label c is alpha p_c, so that they sum to alpha. Papers that write Dir(alpha) with the same alpha
    for each of C labels (FedDyn, Acar et al. 2021) mean C alpha here, where labels are balanced: their 0.3 for ten
    classes is alpha = 3.

    Examples are dealt without replacement. A client whose labels are used up draws another mix from those that are
    left; so the last clients follow the first draw less closely.
    """

    alpha: Annotated[
        float,
        Field(
            gt=0,
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

    alpha: Annotated[float, Field(gt=0, le=1e6, description="concentration: small = few owners per label")] = 0.5
    min_size: Annotated[int, Field(ge=1, description="examples every client has at least")] = 10

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
