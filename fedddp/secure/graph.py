"""Who shares masks with whom: all parties with each other up to 79, from there with a few (Bell et al. 2020).

The k-regular graph is Harary's: parties stand on a circle, in an order shuffled by a hash, and each is joined to the
k/2 nearest on either side. A party's secrets are shared among its neighbours and itself; any ``threshold`` of these
restore them. k is the least even number for which, over the random order, with a fraction COLLUDING of all parties
against the others and a fraction LOST gone (a union bound over the n parties; Bell et al. 2020, section 3):

    n P[Hypergeometric(n - 1, COLLUDING n, k) >= t]       <= 2^-40   colluders restore a secret on their own
    n (COLLUDING + LOST)^(k/2)                            <= 2^-40   the honest survivors fall apart into two groups
    n P[Hypergeometric(n - 1, (1 - LOST) n, k) < t]       <= 2^-20   too few are left to restore a secret: an abort

The parties are taken to be honest but curious here: one that picks its nonce after seeing the others' hellos, or makes
the others begin attempt after attempt, chooses among many orders.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb, floor, log2

SPARSE_FROM = 32
COLLUDING, LOST = 0.1, 1 / 3
SECRET_BITS, ABORTED_BITS = 40, 20


@dataclass(frozen=True)
class Graph:
    """The members of an attempt and, for each, those it shares masks and secrets with (ascending, without itself)."""

    members: tuple[int, ...]
    neighbours: dict[int, tuple[int, ...]]
    threshold: int

    def holders(self, rank: int) -> tuple[int, ...]:
        """Who holds a share of this party's secrets; the relation is symmetric, so also: whose shares it holds."""
        return tuple(sorted((*self.neighbours[rank], rank)))


def draw(members: Sequence[int], quorum: int, seed: bytes, shape: tuple[int, int]) -> Graph:
    """The graph of an attempt, alike on all that have the same ``seed``.

    ``quorum``: the threshold where all are joined to all. ``shape``: of the session, from `shape_for`.
    """
    members = tuple(sorted(members))
    n, (k, threshold) = len(members), shape
    if n < SPARSE_FROM or k >= n - 1:
        return Graph(members, {m: tuple(o for o in members if o != m) for m in members}, quorum)
    circle = sorted(members, key=lambda m: hashlib.sha256(seed + m.to_bytes(4, "big")).digest())
    steps = [s for s in range(-(k // 2), k // 2 + 1) if s]
    around = {m: tuple(sorted(circle[(at + s) % n] for s in steps)) for at, m in enumerate(circle)}
    return Graph(members, around, threshold)


def most_neighbours(world_size: int, shape: tuple[int, int]) -> int:
    """The most neighbours that a party of any attempt of a session can have: messages have room for these."""
    return world_size - 1 if world_size < SPARSE_FROM else min(max(SPARSE_FROM - 2, shape[0]), world_size - 1)


@lru_cache
def shape_for(n: int) -> tuple[int, int]:
    """(k, threshold) for a session of ``n`` parties; k is n - 1 where no smaller number will do.

    The threshold is the highest that leaves enough survivors: the more colluders it takes, the better.
    """
    colluding, left = ceil(COLLUDING * n), floor((1 - LOST) * n) - 1
    least = 2 * ceil((log2(n) + SECRET_BITS) / -log2(COLLUDING + LOST))
    for k in range(least, n - 1, 2):
        threshold, tail = 0, 0.0  # tail: fewer than the threshold are left
        while threshold < k and n * (tail + _chance(n - 1, left, k, threshold)) <= 2**-ABORTED_BITS:
            tail += _chance(n - 1, left, k, threshold)
            threshold += 1
        if n * sum(_chance(n - 1, colluding, k, c) for c in range(threshold, k + 1)) <= 2**-SECRET_BITS:
            return k, threshold
    return n - 1, n - n // 3


def _chance(total: int, marked: int, drawn: int, hit: int) -> float:
    """P[Hypergeometric = hit]: ``hit`` marked ones among ``drawn`` of ``total``."""
    return comb(marked, hit) * comb(total - marked, drawn - hit) / comb(total, drawn)
