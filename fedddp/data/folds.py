"""Split each client's own examples into folds, for cross-validation in which no example leaves its client."""

from dataclasses import replace

import numpy as np

from ..rng import numpy_generator
from .partition import Ints, Partition


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
