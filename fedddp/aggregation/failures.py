"""The clients of a round that failed on this rank, grouped by reason."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Alike:
    """Clients that failed for one reason, and the exception of the first of them, if it was one."""

    reason: str
    error: Exception | None
    clients: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if len(self.clients) == 1:
            return f"client {self.clients[0]} failed; its update is ignored: {self.reason}"
        return (
            f"{len(self.clients)} clients failed; their updates are ignored: {self.reason}, first client "
            f"{self.clients[0]}"
        )


class Failures:
    """Failed clients by reason. Reasons that differ in their numbers only are one, in the first one's words."""

    def __init__(self) -> None:
        self._groups: dict[str, Alike] = {}

    def add(self, ids: Sequence[int], reason: str, error: Exception | None = None) -> None:
        """Record that ``ids`` failed."""
        line = (reason.splitlines() or [""])[0]
        kind = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", line)
        if kind not in self._groups:
            if error is not None:
                traceback.clear_frames(error.__traceback__)  # it can still be printed, and holds no tensors
            self._groups[kind] = Alike(line, error)
        self._groups[kind].clients += ids

    def __iter__(self) -> Iterator[Alike]:
        return iter(self._groups.values())

    def counts(self) -> dict[str, int]:
        """Reason -> number of clients."""
        return {group.reason: len(group.clients) for group in self}
