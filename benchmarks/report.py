"""What a measurement says: ratios of one repeat to the same repeat, medians, a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .contender import Outcome
from .workloads import value

Outcomes = Mapping[str, Outcome]
NAMES = {
    "total": "s a round",
    "train": "s training",
    "evaluate": "s evaluation",
    "clients/s": "clients/s",
    "start": "s to start",
    "memory": "peak MiB, by rank",
}


def series(outcome: Outcome, measure: str) -> list[float]:
    """One value a repeat, the warm-up left out; of "start" one a start, of "memory" one a rank."""
    once = {"start": outcome.starts, "memory": outcome.peak_mib}
    return once[measure] if measure in once else [value(record, measure) for record in outcome.rounds]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(outcomes: Outcomes, measures: Sequence[str]) -> dict[str, dict[str, dict]]:
    """The first contender to each other one, repeat by repeat: name -> measure -> each ratio, median, range."""
    subject, *others = outcomes
    found: dict[str, dict[str, dict]] = {}
    for other in others:
        for measure in measures:
            pairs = zip(series(outcomes[subject], measure), series(outcomes[other], measure), strict=False)
            each = [a / b for a, b in pairs if b]  # strict=False: one that died halfway is compared as far as it came
            if each:
                found.setdefault(other, {})[measure] = {**summary(each), "each": each}
    return found


def show(title: str, outcomes: Outcomes, measures: Sequence[str], console: Console) -> None:
    """The medians of every contender, and the ratios of the first to the others."""
    console.print(_medians(title, outcomes))
    for name, outcome in outcomes.items():
        ended = f"ended after {len(outcome.rounds)} repeats" if outcome.rounds else "not available"
        state = f"[red]{ended}: {escape(outcome.reason)}" if outcome.reason else f"[dim]{outcome.version}"
        console.print(f"{name}: {state}")
    compared = ratios(outcomes, measures)
    if compared:
        console.print(_compared(next(iter(outcomes)), compared, measures))


def _medians(title: str, outcomes: Outcomes) -> Table:
    table = Table(title=title, caption="medians; clients/s of the whole round; all s: warm-up included")
    for column in ("contender", "start s", "MiB a rank", "train s", "evaluate s", "round s", "clients/s", "all s"):
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    table.add_column("accuracy", justify="right")
    for name, outcome in outcomes.items():
        if not outcome.rounds:
            table.add_row(name, "[red]not available")
            continue
        everything = [r for r in (outcome.warm_up, *outcome.rounds) if r]
        accuracy = everything[-1]["accuracy"]
        seconds = [f"{statistics.median(series(outcome, m)):.3f}" for m in ("train", "evaluate", "total")]
        table.add_row(
            name,
            f"{statistics.median(outcome.starts):.1f}",
            f"{max(outcome.peak_mib):.0f}" if outcome.peak_mib else "",
            *seconds,
            f"{statistics.median(series(outcome, 'clients/s')):.1f}",
            f"{sum(r['total'] for r in everything):.1f}",
            f"{accuracy:.4f}" if accuracy is not None else "",
        )
    return table


def _compared(subject: str, compared: Mapping[str, Mapping[str, Mapping]], measures: Sequence[str]) -> Table:
    table = Table(title=f"{subject} / the other, in the same repeat: median (range)")
    table.add_column("the other", no_wrap=True)
    for measure in measures:
        table.add_column(NAMES[measure], justify="right")
    for other, by_measure in compared.items():
        cells = [by_measure.get(measure) for measure in measures]
        table.add_row(other, *(f"{c['median']:.3f} ({c['min']:.3f} to {c['max']:.3f})" if c else "" for c in cells))
    return table


def picture(title: str, outcomes: Outcomes, measures: Sequence[str]) -> Figure:
    """A panel a measure, a row a contender, a dot a repeat, a bar at the median."""
    there = {name: outcome for name, outcome in outcomes.items() if outcome.rounds}
    figure = Figure(figsize=(4.5 * len(measures), 1.4 + 0.5 * len(there)), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for row, outcome in enumerate(there.values()):
            values = series(outcome, measure)
            axes.barh(row, statistics.median(values), height=0.6, color=f"C{row}", alpha=0.4)
            axes.scatter(values, [row] * len(values), s=12, color=f"C{row}", zorder=2)
        axes.set(xlabel=NAMES[measure], xlim=(0, None))
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(there)), list(there))
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure
