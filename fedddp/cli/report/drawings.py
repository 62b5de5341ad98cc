"""The figures of a report as SVG inside the page, each with a description for those who cannot see it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...data import Excerpt
from ...telemetry import figures

MOST_POINTS, MOST_CLIENTS, MOST_LINES = 300, 60, 20
"""Of a curve or a distribution, of the picture of the partition, and in a picture of several runs."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A figure as a data URI, and its description."""

    source: str
    alt: str


def drawing(figure: Figure, alt: str) -> Drawing:
    """Return a figure as SVG whose texts are texts: smaller than their outlines, and they can be searched."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Drawing("data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode(), alt)


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS` of them, evenly spread, the ends included."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, MOST_POINTS).astype(int)]


def plain(text: str) -> str:
    """A label as it is written: matplotlib reads what stands between dollars as a formula."""
    return text.lstrip("_").replace("$", r"\$") or "run"


def curves(found: Mapping[str, Points], metric: str, target: float | None = None) -> Figure:
    """The metric of the test set by round."""
    named = {plain(name): [(int(t), v) for t, v in thinned(points)] for name, points in found.items() if points}
    return figures.curves(dict(list(named.items())[:MOST_LINES]), target, metric)


def lines(found: Mapping[str, Points], across: str, up: str) -> Figure:
    """Curves of other numbers than the test set's metrics."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(found.items()):
        axes.plot(*zip(*thinned(points), strict=True), figures.line_style(number), label=plain(name))
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if len(found) > 1:
        axes.legend()
    return figure


def distribution(columns: Mapping[str, Sequence[float]], up: str) -> Figure:
    """Values of all clients, each column sorted by itself."""
    found = {name: [*enumerate(sorted(values), start=1)] for name, values in columns.items()}
    return lines(found, "clients, from the lowest value to the highest", up)


def owners(clients: Sequence[Mapping[str, str]], population: int) -> Figure:
    """Who owns what, of the lines of ``clients.csv``."""
    some = [clients[i] for i in np.linspace(0, len(clients) - 1, min(len(clients), MOST_CLIENTS)).astype(int)]
    labelled = "labels" in some[0]
    owned = [
        {int(label): int(n) for label, n in (pair.split(":") for pair in (row["labels"] or "").split())}
        if labelled
        else {0: int(row["examples"])}
        for row in some
    ]
    counts = np.zeros((len(some), 1 + max((label for row in owned for label in row), default=0)), dtype=int)
    for row, labels in zip(counts, owned, strict=True):
        row[list(labels)] = list(labels.values())
    ids: Any = np.array([int(row["client"]) for row in some])
    return figures.partition(Excerpt(ids, counts, population, by_label=labelled))
