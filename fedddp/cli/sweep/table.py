"""The results of a sweep: a row per point of the grid, mean and deviation over its seeds; as Markdown, CSV and curves.

TensorBoard's HParams page over a sweep's folder is one table of all its runs: each run's events hold its configuration
and its results. Which of the fifty keys are columns is written once, beside the events of one run: those in which the
runs differ. (TensorBoard takes the first such list that it finds; hence runs write none of their own.)
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ...checkpoints.run_folder import read_json
from ...config import flatten, to_dict
from ...tasks.metrics import FRACTIONS, Target
from ...telemetry import Metrics, primary
from ...telemetry.figures import COLUMN, label, limits, line_style
from ...telemetry.tensorboard import PLAIN, hparam, result_tag
from .grid import GridRun, Sweep
from .run import Standing

COLUMNS = 3  # of panels in the picture
Curve = list[tuple[int, float]]
"""(round, value of a metric) where it was measured."""


@dataclass(frozen=True)
class RunResult:
    """A finished run, or why there is none (empty if it was not tried).

    ``history``: of each round its number and the test set's metrics, as in ``metrics.jsonl``.
    """

    run: GridRun
    summary: Mapping[str, Any] | None
    history: Sequence[Metrics]
    reason: str = ""

    @property
    def result(self) -> str:
        """The run's own metric after its last round, in words."""
        key = primary(self.history)
        value = self.summary.get(f"final_{key}") if self.summary else None
        return "done" if value is None else f"{words(key)} {value:.4f}"

    def curve(self, key: str) -> Curve:
        return [(m["round"], value) for m in self.history if (value := m.get(key)) is not None]

    def rounds_to(self, target: Target | None) -> int | None:
        """The first round that reaches ``target``, or what the run itself asks for."""
        asked = target or _own_target(self.run)
        return next((m["round"] for m in self.history if asked and asked.met(m.get(asked.key))), None)


@dataclass(frozen=True)
class Average:
    """Over ``n`` runs: mean and sample deviation (n - 1 below the fraction; None for a single run)."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class TableRow:
    """Runs that differ in nothing but the axis that is averaged over; ``key``: the metric that the table shows."""

    labels: tuple[str, ...]
    outcomes: tuple[RunResult, ...]
    target: Target | None
    key: str = "test_accuracy"

    @property
    def done(self) -> list[RunResult]:
        return [outcome for outcome in self.outcomes if outcome.summary is not None]

    def mean(self, key: str) -> Average | None:
        """Of an entry of the runs' summaries."""
        values = [outcome.summary.get(key) for outcome in self.done if outcome.summary is not None]
        return Average.of([value for value in values if value is not None])

    @property
    def rounds_to_target(self) -> Average | None:
        """Over the runs that reached it."""
        reached = [outcome.rounds_to(self.target) for outcome in self.done]
        return Average.of([rounds for rounds in reached if rounds is not None])

    @property
    def remark(self) -> str:
        told = [f"{o.run.name} failed: {o.reason}" for o in self.outcomes if o.reason]
        known = {name for o in self.done for m in o.history for name in m}
        if known and self.target and self.target.key not in known:
            told.append(f"there is no {self.target.metric}")
        return "; ".join(told)


def outcome(run: GridRun, found: Standing, reason: str = "") -> RunResult:
    """What the run's folder tells. A run that is not done has no place in a mean."""
    if found.kind != "done":
        return RunResult(run, None, [], reason)
    lines = (found.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    history = [{k: v for k, v in json.loads(m).items() if k == "round" or k.startswith("test_")} for m in lines]
    return RunResult(run, read_json(found.folder / "summary.json"), history)


def rows(sweep: Sweep, outcomes: Sequence[RunResult]) -> list[TableRow]:
    """The outcomes by what tells rows apart, in the grid's order."""
    grouped: dict[tuple[str, ...], list[RunResult]] = {}
    for one in outcomes:
        grouped.setdefault(tuple(one.run.labels[axis] for axis in sweep.shown), []).append(one)
    key, target = _key(outcomes), sweep.settings.counted
    return [TableRow(labels, tuple(group), target, key) for labels, group in grouped.items()]


def _key(outcomes: Sequence[RunResult]) -> str:
    """The metric that the table shows: the runs' own; where these differ, accuracy if all have it, else the loss."""
    histories = [outcome.history for outcome in outcomes if outcome.history]
    own = {primary(history) for history in histories}
    if len(own) == 1:
        return own.pop()
    common = all(any(m.get("test_accuracy") is not None for m in history) for history in histories)
    return "test_accuracy" if common else "test_loss"


def draw(sweep: Sweep, table: Sequence[TableRow]) -> None:
    """Write the curves to the sweep's folder: as a picture, and for one column of a paper."""
    curves(sweep, table).savefig(sweep.folder / "curves.png", dpi=120)
    with rc_context({"font.size": 8, "legend.fontsize": 7}):
        curves(sweep, table, column=True).savefig(sweep.folder / "curves.pdf")


def markdown(sweep: Sweep, table: Sequence[TableRow]) -> str:
    """For people: mean ± deviation, fractions in percent; with two axes, a second table that crosses them."""
    key = table[0].key
    heads = [*sweep.shown, f"final {words(key)}", "best", f"rounds to {_target(sweep)}", "runs", "seconds a run"]
    lines = [[*row.labels, *_shown(row)] for row in table]
    if any(row.remark for row in table):
        heads.append("remark")
        lines = [[*line, row.remark] for line, row in zip(lines, table, strict=True)]
    text = f"# {sweep.settings.name}\n\n{_markdown(heads, lines)}"
    if len(sweep.shown) == 2:
        text += f"\nFinal {words(key)}, {sweep.shown[0]} by {sweep.shown[1]}:\n\n{_crossed(sweep, table)}"
    averaged = next((axis for axis in sweep.axes if axis.name == sweep.settings.average), None)
    over = f"over {averaged.name} = {', '.join(averaged.changes)}" if averaged else "of single runs"
    unit = " in percent" if metric_name(key) in FRACTIONS else ""
    return f"{text}\n{words(metric_name(key)).capitalize()}{unit}, mean ± sample standard deviation {over}.\n"


def as_csv(sweep: Sweep, table: Sequence[TableRow]) -> str:
    """For programs: plain numbers, such as accuracy as a fraction; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = (f"final_{table[0].key}", f"best_{table[0].key}", "rounds_to_target", "seconds_total")
    heads = [name for figure in figures for name in (figure, f"{figure}_deviation")]
    writer.writerow([*sweep.shown, *heads, "runs_done", "runs_reaching_target", "runs", "remark"])
    for row in table:
        means = [row.rounds_to_target if key == "rounds_to_target" else row.mean(key) for key in figures]
        numbers = [number for mean in means for number in ((mean.mean, mean.deviation) if mean else (None, None))]
        reached = row.rounds_to_target.n if row.rounds_to_target else 0
        writer.writerow([*row.labels, *numbers, len(row.done), reached, len(row.outcomes), row.remark])
    return out.getvalue()


def _shown(row: TableRow) -> list[str]:
    reached, seconds = row.rounds_to_target, row.mean("seconds_total")
    some = f" ({reached.n} of {len(row.done)})" if reached and reached.n < len(row.done) else ""
    return [
        value(row, "final"),
        value(row, "best"),
        _plus_minus(reached, 1, ".1f") + some,
        f"{len(row.done)}/{len(row.outcomes)}",
        f"{seconds.mean:.1f}" if seconds else "-",
    ]


def value(row: TableRow, which: str) -> str:
    """The row's final or best value: of a fraction in percent, else with four digits, but at most four decimals."""
    mean = row.mean(f"{which}_{row.key}")
    if mean is None or metric_name(row.key) in FRACTIONS:
        return _plus_minus(mean, 100, ".2f")
    decimals = 3 - math.floor(math.log10(abs(mean.mean))) if mean.mean else 4
    return _plus_minus(mean, 1, f".{min(4, max(0, decimals))}f")


def metric_name(key: str) -> str:
    """The name of the metric of the entry ``key``."""
    return key.removeprefix("test_")


def words(key: str) -> str:
    """An entry's name for people."""
    return key.replace("_", " ")


def _plus_minus(mean: Average | None, scale: float, digits: str) -> str:
    if mean is None:
        return "-"
    spread = "" if mean.deviation is None else f" ± {format(scale * mean.deviation, digits)}"
    return format(scale * mean.mean, digits) + spread


def _target(sweep: Sweep) -> str:
    targets = {_own_target(run) for run in sweep.runs}
    target = sweep.settings.counted or (targets.pop() if len(targets) == 1 else None)
    return "target" if target is None else f"{target.value:g}" if target.metric == "accuracy" else str(target)


def _own_target(run: GridRun) -> Target | None:
    return Target.asked(run.config.evaluate.target_accuracy, run.config.evaluate.target)


def _crossed(sweep: Sweep, table: Sequence[TableRow]) -> str:
    cells = {row.labels: value(row, "final") for row in table}
    downs, acrosses = (list(dict.fromkeys(labels[i] for labels in cells)) for i in (0, 1))
    lines = [[down, *(cells.get((down, across), "-") for across in acrosses)] for down in downs]
    return _markdown([sweep.shown[0], *acrosses], lines)


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(heads)
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in (heads, rule, *lines))


def write_columns(sweep: Sweep, table: Sequence[TableRow]) -> None:
    """Write the columns of the HParams page to the first run that has pages; of several such lists the last counts."""
    pages = [page for run in sweep.runs if (page := sweep.folder / run.name / "tensorboard").is_dir()]
    if pages:
        columns, _, _ = hparams(
            {hparam(key): value for key, value in varied(sweep).items()}, {result_tag(table[0].key): 0.0}
        )
        with SummaryWriter(str(pages[0])) as writer:
            writer._get_file_writer().add_summary(columns)


def varied(sweep: Sweep) -> dict[str, Any]:
    """The keys in which runs differ, with a value of each: text if any run's is, since that says the column's kind."""
    configs = [flatten(to_dict(run.config)) for run in sweep.runs]
    keys = dict.fromkeys(key for config in configs for key in config if key != "run.name")
    found = {key: [config.get(key) for config in configs] for key in keys}
    differing = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    plain = {key: [value for value in values if isinstance(value, PLAIN)] for key, values in differing.items()}
    return {key: max(values, key=lambda value: isinstance(value, str)) for key, values in plain.items() if values}


def curves(sweep: Sweep, table: Sequence[TableRow], *, column: bool = False) -> Figure:
    """The metric by round: a line a row, its deviation a band; with several axes a panel for each of the first.

    ``column``: for one column of a paper, panels below each other.
    """
    panels: dict[str, list[TableRow]] = {}
    for row in table:
        panels.setdefault(row.labels[0] if len(row.labels) > 1 else "", []).append(row)
    across = 1 if column else min(COLUMNS, len(panels))
    down = -(-len(panels) // across)
    most = max(map(len, panels.values()))
    size = (COLUMN, 0.4 + 0.1 * most + 1.9 * down) if column else (1.5 + 4.2 * across, 0.8 + 3.4 * down)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axes, (title, rows) in zip(grid, panels.items(), strict=False):
        for number, row in enumerate(rows):
            _line(axes, row, ", ".join(row.labels[1:] or row.labels), line_style(number))
        axes.set(title=title and f"{sweep.shown[0]}: {title}", xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    metric, asked = metric_name(table[0].key), sweep.settings.counted
    target = asked.value if asked and asked.metric == metric else None
    if target is not None:
        for axes in grid[: len(panels)]:
            axes.axhline(target, color="grey", linestyle="--", linewidth=1)
    found = [[value for _, value in outcome.curve(row.key)] for row in table for outcome in row.done]
    if (found := [values for values in found if values]) and metric not in FRACTIONS:
        grid[0].set_ylim(*limits(metric, found, target))
    for axes in grid[: len(panels) : across]:
        axes.set_ylabel(label(metric))
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(2 if column else 4, len(labels)))
    return figure


def _line(axes: Axes, row: TableRow, label: str, style: str) -> None:
    """The mean over the row's runs of the rounds that all of them have."""
    found = [dict(outcome.curve(row.key)) for outcome in row.done]
    rounds = sorted(set.intersection(*map(set, found))) if found else []
    values = [[curve[t] for curve in found] for t in rounds]
    means = [statistics.fmean(v) for v in values]
    (line,) = axes.plot(rounds, means, style, label=label, marker="." if len(rounds) < 30 else "")
    if len(found) > 1:
        spread = [statistics.stdev(v) for v in values]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
