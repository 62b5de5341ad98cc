"""Read a run folder with patience: a run may have failed, be running, or have a damaged line."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...checkpoints.run_folder import read_json, read_lines, state_of
from ...config import UsageError, flatten, read_toml
from ...tasks.metrics import LOWER
from ...telemetry import Metrics, primary
from ..reference import reference

NAMING = ("run.name", "run.dir", "run.resume")
"""Keys that name a run and say nothing of it."""
PHASES = ("train", "aggregate", "evaluate")


@dataclass(frozen=True)
class Run:
    """A run as its folder has it; ``damaged`` counts the lines of ``metrics.jsonl`` that cannot be read."""

    folder: Path
    keys: Mapping[str, Any]
    history: list[Metrics]
    damaged: int
    summary: Mapping[str, Any]
    status: Mapping[str, Any]
    clients: list[dict[str, str]]
    environment: str

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder. Raises UsageError if it is none."""
        history, damaged = _history(folder / "metrics.jsonl")
        rows = csv.DictReader(_text(folder / "clients.csv").splitlines())
        clients = [row for row in rows if None not in (*row, *row.values())]  # of as many columns as there are names
        summary, (state, status) = read_json(folder / "summary.json"), state_of(folder)
        status = {**status, "state": state}
        keys = flatten(read_toml(folder / "config.toml"))
        return cls(folder, keys, history, damaged, summary, status, clients, _text(folder / "environment.txt"))

    @property
    def name(self) -> str:
        return str(self.keys.get("run.name") or self.folder.name)

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Key -> its value and its default, where they differ; None without a default."""
        defaults: dict[str, Any] = {}
        for key in reference().keys:
            chosen = self.keys.get(f"{key.choice}.name", "") if key.choice else ""
            if not key.choice or chosen in key.had_by(key.choice):
                defaults[key.name] = key.default
        kept = {key: value for key, value in self.keys.items() if key not in NAMING and value not in ("", {}, [])}
        return {key: (value, defaults.get(key)) for key, value in kept.items() if value != defaults.get(key)}

    @cached_property
    def primary(self) -> str:
        """The key of the metric that is shown first."""
        return primary(self.history)

    @property
    def lower(self) -> bool:
        """Whether less of it is better."""
        return self.primary.removeprefix("test_") in LOWER

    def points(self, key: str) -> list[tuple[int, float]]:
        """(round, value) of a metric where it was measured."""
        found = ((m["round"], m.get(key)) for m in self.history)
        return [(t, value) for t, value in found if isinstance(value, int | float) and math.isfinite(value)]

    @property
    def final(self) -> float | None:
        return next((value for _, value in reversed(self.points(self.primary))), None)

    @property
    def best(self) -> tuple[int, float] | None:
        """The round with the best value, and the value."""
        found = self.points(self.primary)
        return (min if self.lower else max)(found, key=lambda point: point[1]) if found else None

    def rounds_to(self, level: float) -> int | None:
        """The first round that reaches ``level``."""
        met = (t for t, v in self.points(self.primary) if (v <= level if self.lower else v >= level))
        return next(met, None)

    def total(self, key: str) -> float | None:
        """The sum of a number over the rounds; None if none has it."""
        found = [value for _, value in self.points(key)]
        return sum(found) if found else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase; "other" is what is left of the whole."""
        whole = self.total("seconds")
        if whole is None:
            return {}
        found = {phase: self.total(f"seconds_{phase}") or 0.0 for phase in PHASES}
        return {**found, "other": max(0.0, whole - sum(found.values())), "total": whole}

    @property
    def sent(self) -> dict[str, int]:
        """Bytes that a rank sent, by purpose."""
        found = Counter[str]()
        for m in self.history:
            found.update(_table(m, "sent"))
        return dict(found.most_common())

    @property
    def failures(self) -> dict[str, int]:
        """Failed clients over all rounds, by reason as far as it is known."""
        found = Counter[str]()
        for m in self.history:
            known = _table(m, "failure_reasons")
            found.update(known)
            found["?"] += (m.get("failures") or 0) - sum(known.values())
        return {reason: number for reason, number in found.items() if number > 0}

    @property
    def world_size(self) -> int:
        return int(self.summary.get("world_size") or 1)


def found(paths: Iterable[Path]) -> list[Run]:
    """The runs that ``paths`` name: run folders, or folders of runs such as a sweep's. Raises UsageError."""
    folders: dict[Path, None] = {}
    for path in paths:
        inside = [path] if (path / "config.toml").is_file() else sorted(p.parent for p in path.glob("*/config.toml"))
        if not inside:
            raise UsageError(
                f"{path}: is not a run folder (it has no config.toml), nor does it hold any; train one first"
            )
        folders |= dict.fromkeys(inside)
    return [Run.read(folder) for folder in folders]


def _history(path: Path) -> tuple[list[Metrics], int]:
    """The rounds, each once and in order, and the number of lines that are no round."""
    entries = read_lines(path)
    told = [entry for entry in entries if isinstance(entry.get("round"), int)]
    rounds = {entry["round"]: entry for entry in told}
    return [rounds[t] for t in sorted(rounds)], len(entries) - len(told)


def _table(line: Metrics, key: str) -> dict[str, int]:
    """The numbers by name in a line of metrics; empty where there are none."""
    value = line.get(key)
    return {str(k): n for k, n in value.items() if isinstance(n, int)} if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    """A file's text; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
