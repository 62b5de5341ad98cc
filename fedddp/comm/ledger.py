"""Record every message that this rank sends, by purpose.

Everything that leaves a rank leaves through `Comm`, which enters each collective and each store write here; a tap on
the network must find the same bytes. The transport's own are not counted: message headers, acknowledgements, and the
keys that are read from a store.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Entry", "Ledger", "Purpose", "by_purpose"]


class Purpose(StrEnum):
    """What a message is for, as in ``ledger.jsonl`` and `Guard`."""

    DISTRIBUTE = "distribute the model"
    RESUME = "resume"
    PRIVACY = "privacy"
    RUN_FOLDER = "run folder"
    COHORT = "cohort"
    AGGREGATE = "aggregate"
    EVALUATE = "evaluate"
    EVALUATE_CLIENTS = "evaluate clients"
    CLIENTS_MEAN = "clients' mean"
    TARGET_ACCURACY = "target accuracy"
    DONE = "done"
    CLOSE = "close"
    # secure aggregation
    SECURE_HELLO = "secure hello"
    SECURE_KEYS = "secure keys"
    SECURE_SHARES = "secure shares"
    SECURE_COMMIT = "secure commit"
    SECURE_REVEAL = "secure reveal"
    SECURE_STATUS = "secure status"
    # writes to the launcher's store
    PROGRESS = "progress"
    GPU = "gpu"
    SIGNATURE = "signature"
    REGROUP = "regroup"


@dataclass(frozen=True)
class Entry:
    """One kind of message: how often it was sent, and its bytes on the network from this rank, together.

    Args:
        op: all_reduce, all_to_all, all_gather, broadcast, or store (a key and a value written to the launcher's store).
        dtype: element type, "bytes" for a store write.
        shape: of the tensor; () for a store write.
        bytes: what this rank sends for it: 2 (R-1)/R of the tensor in a ring, one copy for each child in a broadcast's
            tree, the rows of others in an all_to_all, R-1 copies in an all_gather's ring.
    """

    op: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    purpose: str
    count: int = 1


class Ledger:
    """Messages since the last `take`. Several threads may write to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[tuple[str, str, tuple[int, ...], str], list[int]] = {}

    def add(self, op: str, dtype: str, shape: tuple[int, ...], bytes: int, purpose: str) -> None:
        """Enter one message."""
        with self._lock:
            sums = self._sent.setdefault((op, dtype, shape, str(purpose)), [0, 0])
            sums[0] += bytes
            sums[1] += 1

    def take(self) -> tuple[Entry, ...]:
        """The messages since the last take, equal ones merged, in the order of their first appearance."""
        with self._lock:
            sent, self._sent = self._sent, {}
        return tuple(Entry(op, t, shape, bytes, why, count) for (op, t, shape, why), (bytes, count) in sent.items())


def by_purpose(entries: Iterable[Entry]) -> dict[str, int]:
    """Bytes of each purpose."""
    bytes: dict[str, int] = {}
    for entry in entries:
        bytes[entry.purpose] = bytes.get(entry.purpose, 0) + entry.bytes
    return bytes
