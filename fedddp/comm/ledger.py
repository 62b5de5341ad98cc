"""What this rank sends, by purpose: the account that privacy is checked against.

Everything that leaves a rank leaves through `Comm`, which writes each collective and each store write down here; a tap
on the wire must find the same bytes. What is not counted is the transport's own: message headers and acknowledgements,
and the keys that a store is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "Ledger", "by_purpose"]


@dataclass(frozen=True)
class Entry:
    """One kind of message: how often it was sent, and its bytes on the wire from this rank, together."""

    op: str
    """all_reduce, all_to_all, all_gather, broadcast, or store (a key and a value written to the launcher's store)."""
    dtype: str
    shape: tuple[int, ...]
    """Of the tensor; () for a store write."""
    bytes: int
    """What this rank sends for it: 2 (R-1)/R of the tensor in a ring, one copy for each child in a broadcast's tree,
    the rows of others in an all_to_all, R-1 copies in an all_gather's ring."""
    purpose: str
    count: int = 1


class Ledger:
    """Messages since the last `take`. Safe to write to from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[tuple[str, str, tuple[int, ...], str], list[int]] = {}

    def add(self, op: str, dtype: str, shape: tuple[int, ...], bytes: int, purpose: str) -> None:
        """One message was sent."""
        with self._lock:
            sums = self._sent.setdefault((op, dtype, shape, purpose), [0, 0])
            sums[0] += bytes
            sums[1] += 1

    def take(self) -> tuple[Entry, ...]:
        """What was sent since the last take, equal messages merged, in the order of their first appearance."""
        with self._lock:
            sent, self._sent = self._sent, {}
        return tuple(Entry(op, t, shape, bytes, why, count) for (op, t, shape, why), (bytes, count) in sent.items())


def by_purpose(entries: Iterable[Entry]) -> dict[str, int]:
    """Bytes of each purpose."""
    bytes: dict[str, int] = {}
    for entry in entries:
        bytes[entry.purpose] = bytes.get(entry.purpose, 0) + entry.bytes
    return bytes
