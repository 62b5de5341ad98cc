"""The picture of a sweep: its runs' curves."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .grid import Sweep
from .table import Row

COLUMNS = 3


def curves(sweep: Sweep, table: Sequence[Row]) -> Figure:
    """Test accuracy by round: a line a row, its deviation a band; with several axes a panel for each of the first."""
    panels: dict[str, list[Row]] = {}
    for row in table:
        panels.setdefault(row.labels[0] if len(row.labels) > 1 else "", []).append(row)
    across = min(COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.5 + 4.2 * across, 0.8 + 3.4 * down), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axes, (title, rows) in zip(grid, panels.items(), strict=False):
        for row in rows:
            _line(axes, row, ", ".join(row.labels[1:] or row.labels))
        axes.set(title=title and f"{sweep.shown[0]}: {title}", xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    if sweep.settings.target_accuracy is not None:
        for axes in grid[: len(panels)]:
            axes.axhline(sweep.settings.target_accuracy, color="grey", linestyle="--", linewidth=1)
    for axes in grid[: len(panels) : across]:
        axes.set_ylabel("test accuracy")
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _line(axes: Axes, row: Row, label: str) -> None:
    """The mean over the row's runs of the rounds that all of them have."""
    found = [dict(outcome.curve) for outcome in row.done]
    rounds = sorted(set.intersection(*map(set, found))) if found else []
    values = [[curve[t] for curve in found] for t in rounds]
    means = [statistics.fmean(v) for v in values]
    (line,) = axes.plot(rounds, means, label=label, marker="." if len(rounds) < 30 else "")
    if len(found) > 1:
        spread = [statistics.stdev(v) for v in values]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
