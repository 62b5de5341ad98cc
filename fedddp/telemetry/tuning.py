"""Report a hyper-parameter search: a table and files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.table import Table

from ..tasks.metrics import LOWER
from .terminal import console


@dataclass(frozen=True)
class Candidate:
    """One combination of hyper-parameters, with the value of a metric and the loss in each fold.

    A value is None where the examples of the fold determine none, or training diverged.
    """

    parameters: Mapping[str, Any]
    values: list[float | None]
    losses: list[float]
    metric: str = "accuracy"

    @property
    def text(self) -> str:
        return "  ".join(f"{key}={value}" for key, value in self.parameters.items())

    @property
    def known(self) -> list[float]:
        """The values of the folds that determine one."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the folds that determine a value; None without any, and where the loss of a fold is not finite."""
        finite = all(map(math.isfinite, self.losses))
        return statistics.fmean(self.known) if self.known and finite else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the folds, with k - 1 in the denominator."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None

    @property
    def quality(self) -> float:
        """A number that is larger for a better candidate: the mean, negated where less is better."""
        return -math.inf if self.mean is None else -self.mean if self.metric in LOWER else self.mean

    @property
    def loss(self) -> float:
        return statistics.fmean(self.losses)


def chosen(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the best mean; of equals, with the lowest loss."""
    return max(candidates, key=lambda c: (c.quality, -c.loss))


def print_table(candidates: Sequence[Candidate], folds: int) -> None:
    """Print the table, the best candidate first."""
    best = chosen(candidates)
    table = Table(title=f"{folds}-fold cross-validation")
    for column in _columns(best):
        table.add_column(column, justify="right")
    for candidate in sorted(candidates, key=lambda c: -c.quality):
        table.add_row(*_cells(candidate), style="bold" if candidate is best else None)
    console().print(table)


def write(folder: Path, candidates: Sequence[Candidate], folds: int, examples: int, rounds: int) -> None:
    """Write ``results.json``, ``results.md`` and ``chosen.toml``; ``examples``: most per client, 0 = all."""
    folder.mkdir(parents=True, exist_ok=True)
    best = chosen(candidates)
    results = {
        "folds": folds,
        "rounds": rounds,
        "examples_per_client": examples or None,
        "candidates": [{**asdict(c), "mean": c.mean, "deviation": c.deviation} for c in candidates],
        "chosen": dict(best.parameters),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    header = _columns(best)
    lines = [header, ["---:"] * len(header), *map(_cells, candidates)]
    (folder / "results.md").write_text("".join("| " + " | ".join(line) + " |\n" for line in lines), encoding="utf-8")
    table = tomli_w.dumps(_nested(best.parameters))
    (folder / "chosen.toml").write_text(f"# by {folds}-fold cross-validation\n\n{table}", encoding="utf-8")


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value in parameters.items():
        *sections, key = path.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return table


def _columns(candidate: Candidate) -> list[str]:
    return [*candidate.parameters, candidate.metric.replace("_", " "), "deviation", "loss"]


def _cells(candidate: Candidate) -> list[str]:
    figures = (candidate.mean, candidate.deviation, candidate.loss)
    return [*map(str, candidate.parameters.values()), *("-" if v is None else f"{v:.4f}" for v in figures)]
