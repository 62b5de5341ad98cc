"""What a neighbour rank receives in a ring all_reduce before anything was added to it.

Gloo cuts a vector into n = R s segments of equal size (s at least 2 and as many as keep a segment within 1 MiB) and
sends to the rank before it: rank r starts with the segments (r+1) s ... (r+2) s - 1 of its own vector, as they are, and
goes on with partial sums. So rank r-1 holds 1/R of rank r's raw update, and a tap between them too. A tap on the wire
confirms it (tests/distributed/test_tap.py); the algorithm is gloo/allreduce.cc, `ring`.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["neighbour", "received_by_neighbour"]

SEGMENT = 1 << 20  # gloo's largest segment, in bytes


def neighbour(rank: int, world_size: int) -> int:
    """The rank that receives raw segments of ``rank``."""
    return (rank - 1) % world_size


def received_by_neighbour(x: Tensor, rank: int, world_size: int) -> tuple[slice, Tensor]:
    """The slice of ``rank``'s vector ``x [D]`` that its neighbour receives as it is, and what is in it.

    Other shapes are read flat. With two ranks the neighbour knows the sum as well, and so the whole of it.
    """
    x = x.flatten()
    size, width = x.numel() * x.element_size(), x.element_size()
    segments = max(-(-size // (SEGMENT // width * width)), 2 * world_size)
    per_rank = -(-segments // world_size)
    length = -(-size // (per_rank * world_size))  # bytes of a segment, before rounding up to whole elements
    chunk = per_rank * -(-length // width)
    begin = (rank + 1) % world_size * chunk
    piece = slice(min(begin, x.numel()), min(begin + chunk, x.numel()))
    return piece, x[piece]
