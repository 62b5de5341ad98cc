"""What loggers share: what they know of the run, and metrics without nesting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT = "loggers.json"
"""File of a run folder with the identifier of its run at each logger, by which a resumed run continues there."""
FILES = ("config.toml", "metrics.jsonl", "summary.json")
"""What a logger that keeps files is given at the end."""


@dataclass(frozen=True)
class Run:
    """A run, as a logger knows it.

    Attributes:
        name: its name.
        folder: its folder.
        config: its configuration, dotted keys to values, without keys of this machine (paths).
    """

    name: str
    folder: Path
    config: Mapping[str, Any]

    def identifier(self, logger: str, make: Callable[[], str]) -> tuple[str, bool]:
        """Return the identifier of this run at ``logger``, and whether it was there; else it is made and kept."""
        path = self.folder / KEPT
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if logger in known:
            return known[logger], True
        known[logger] = make()
        path.write_text(json.dumps(known), encoding="utf-8")
        return known[logger], False


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``metrics`` without tables in tables ("sent/upload") and without what is None."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif value is not None:
            found[prefix + str(name)] = value
    return found
