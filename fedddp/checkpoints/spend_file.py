"""Record the privacy spent, before it is spent: one line per release, flushed to disk.

    {"release": 13, "round": 12, "clients": [0, 4, 7]}

Releases are numbered through all attempts of a run, rounds may repeat: a round that was released, lost because the
process was killed before its checkpoint, and done again is two releases. ``clients`` is null if every unit counts.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ..comm import interrupt
from .durable import sync

log = logging.getLogger("fedddp")

MOST = 10_000_000
"""Releases that a run can have at most: those of a million rounds, some of them again."""


class SpendFile:
    """The file at ``path``, made when first needed; written by rank 0, without which no sum is completed."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)

    def append(self, release: int, round: int, clients: Sequence[int] | None) -> None:
        """Record a release before it happens; it is on disk on return. Raises OSError."""
        line = json.dumps({"release": release, "round": round, "clients": None if clients is None else list(clients)})
        new = not self._path.exists()
        with interrupt.at_disk(), self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last write was cut short by a kill
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self._path.parent)

    def since(self, release: int) -> list[list[int] | None]:
        """The participants of each release after number ``release``; None for all.

        A number that is missing or unreadable before a higher one counts for all. (An incomplete last line is that of a
        release that did not happen.) A number that occurs twice counts twice.
        """
        found: list[tuple[int, list[int] | None]] = []
        for line in self._path.read_bytes().splitlines() if self._path.exists() else []:
            try:
                entry = json.loads(line)
                if (number := int(entry["release"])) > MOST:
                    raise ValueError
                found.append((number, entry["clients"]))
            except (ValueError, KeyError, TypeError, OverflowError):
                log.warning("%s has an unreadable line, skipped: %.60r", self._path, line)
        later = {number for number, _ in found if number > release}
        missing = set(range(release + 1, max(later, default=0))) - later
        return [clients for number, clients in found if number > release] + [None] * len(missing)
