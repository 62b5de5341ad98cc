"""Print a run's progress: a bar on a terminal, lines elsewhere, and the summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from ..evaluation.server import Score
from ..tasks.metrics import LOWER
from .beside import SideWork
from .environment import memory
from .pace import Pace, Plan, clock
from .telemetry import Metrics, RoundRecord, now_and_then, primary
from .terminal import console, on_terminal

log = logging.getLogger("fedddp")

BARS = "▁▂▃▄▅▆▇█"
DIVERGED = 1e4
"""A test loss above this means divergence: guessing costs log C, 11.5 for 100,000 classes, or 1 - R2 = 1."""


class ProgressBar:
    """Two lines: how far the run and its round are, with elapsed and remaining time; and what the last round gave."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._pace = plan, Pace(plan)
        self._second = Text()
        self._progress = _TwoLines(
            self._second,
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[clients]}"),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            _Left(self._pace),
            console=console(80),
        )
        self._task = self._progress.add_task("", total=plan.rounds, completed=plan.done, clients="")
        self._progress.start()

    def clients(self, done: int, of: int) -> None:
        """Show how many clients this rank has trained in the round."""
        self._progress.update(self._task, clients=f"client {done}/{of}")

    def round(self, record: RoundRecord) -> None:
        m = record.metrics
        self._pace.round(m)
        self._second.plain = "  ".join([*_results(m), *_rate(self._plan, m)])
        self._progress.update(self._task, completed=m["round"], clients="")
        if costs := _costs(self._pace, m):
            self._progress.console.print(costs, highlight=False)

    def close(self, summary: Metrics | None) -> None:
        self._progress.stop()


class _TwoLines(Progress):
    def __init__(self, second: Text, *columns: ProgressColumn, console: Console) -> None:
        self._second = second
        super().__init__(*columns, console=console, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self._second:
            yield self._second


class _Left(ProgressColumn):
    """The time left by ``pace``; rich's own takes all rounds for equal."""

    max_refresh = 0.5

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.left()
        return Text("-:--" if left is None else clock(left), style="progress.remaining")


class ProgressLines:
    """One line per round, with the time of day and the time left."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._pace = plan, Pace(plan)

    def clients(self, done: int, of: int) -> None:
        """Print nothing: a log would be full of it."""

    def round(self, record: RoundRecord) -> None:
        m, rounds = record.metrics, self._plan.rounds
        self._pace.round(m)
        parts = [f"round {m['round']:{len(str(rounds))}d}/{rounds}", *_results(m)]
        if m["seconds"] is not None:  # else no time may be told
            parts[0] = time.strftime("%H:%M:%S ") + parts[0]
            left = None if m["round"] == rounds else self._pace.left()
            parts.append(_seconds(m["seconds"]) + ("" if left is None else f", {clock(left)} left"))
        print("  ".join(parts), flush=True)
        for extra in filter(None, (_on_clients(record), _costs(self._pace, m))):
            print(f"  {extra}", flush=True)
        if record.score is not None and (now_and_then(m["round"]) or m["round"] == rounds):
            for name, text in record.score.texts.items():
                print(f"  {name}: {text!r}", flush=True)

    def close(self, summary: Metrics | None) -> None:
        pass


def _results(m: Metrics) -> Iterator[str]:
    """What a round gave, in few words, the metric first."""
    yield from _figures(m)
    if m.get("attack_success") is not None:
        yield f"attack success {m['attack_success']:.4f}"
    if m["train_loss"] is not None:
        yield f"train loss {_loss(m['train_loss'])}"
    if m["failures"] and m["participants"] is not None:
        yield f"{m['failures']} of {m['participants'] + m['failures']} clients failed"
    if m.get("epsilon") is not None:
        yield f"epsilon {m['epsilon']:.3f}"


def _on_clients(record: RoundRecord) -> str:
    if record.clients is None:
        return ""
    own, common, measured = record.clients.personal, record.clients.global_model, record.clients.measured
    figures = f"personal {own.mean:.4f}, {own.worst10:.4f}, global {common.mean:.4f}"
    return f"{measured} on clients (mean, worst tenth): {figures}"


def _rate(plan: Plan, m: Metrics) -> list[str]:
    lr = plan.lr(m["round"])
    return [] if lr is None else [f"lr {lr:.3g}"]


def _costs(pace: Pace, m: Metrics) -> str:
    """What a round costs, once: the first one sends the model, too, so it is the second."""
    if pace.rounds != 2 or m["seconds"] is None:
        return ""
    sent = f"each rank sends {decimal(m['bytes_sent'])} per round; " if m["bytes_sent"] else ""
    return f"{sent}rank 0 has taken up to {memory()} of memory"


def _seconds(value: float) -> str:
    return f"{value:.0f}s" if value >= 9.95 else f"{value:.1f}s"


def _figures(m: Metrics) -> list[str]:
    """The evaluation in words: the task's primary metric, and its accuracy; the loss where it has neither."""
    shown = dict.fromkeys((primary([m]), "test_accuracy"))
    return [f"{key.replace('_', ' ')} {_loss(m[key])}" for key in shown if m.get(key) is not None]


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < DIVERGED else f"{value:.3g}"


class Divergence:
    """Warns once that a run diverges, with the remedy."""

    def __init__(self) -> None:
        self._warned = False

    def round(self, record: RoundRecord) -> None:
        score = record.score
        if score is None or self._warned or _against_guessing(score) <= DIVERGED:
            return
        self._warned = True
        log.warning(
            "round %d: the test loss is %.3g: training diverges; lower client.optimizer.lr, or set client.clip_norm",
            record.metrics["round"],
            score.loss,
        )

    def close(self, summary: Metrics | None) -> None:
        pass


def _against_guessing(score: Score) -> float:
    """A test loss that guessing keeps small; of a regression, whose loss has the unit of its targets, 1 - R2."""
    r2 = score.metrics.get("r2")
    return score.loss if r2 is None else 1 - r2


def progress(kind: str, plan: Plan) -> list[ProgressBar | ProgressLines]:
    """The sink for ``telemetry.progress``; none if that is off."""
    if kind == "off":
        return []
    if kind == "bar" or (kind == "auto" and on_terminal()):
        return [ProgressBar(plan)]
    return [ProgressLines(plan)]


def _counted(name: str, value: float | None) -> str:
    """A failure with its number, or a delta with its epsilon."""
    return f"{value:,} x {name}" if isinstance(value, int) else f"{'-' if value is None else f'{value:.4g}'} at {name}"


def summary_table(summary: Metrics, history: Sequence[Metrics]) -> None:
    """Print a run's summary as a table, without what has no value, and the course of its metric."""
    with SideWork()("summary table"):
        table = Table("", Column(overflow="fold"), title="fedddp", show_header=False)
        for key, value in summary.items():
            if value is not None:
                table.add_row(key.replace("_", " "), value_text(value))
        for name, course in _course(history):
            table.add_row(name, course)
        console().print(table)


def value_text(value: Any) -> str:
    """Return a value of a summary as text; of several ones a line each."""
    if isinstance(value, dict):
        return "\n".join(_counted(name, n) for name, n in value.items()) or "0"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _course(history: Sequence[Metrics]) -> Iterator[tuple[str, str]]:
    """The best round, and the metric shown first over the rounds as a line of small bars."""
    key = primary(history)
    known = [(m[key], m["round"]) for m in history if m.get(key) is not None]
    if known:
        lower = key.removeprefix("test_") in LOWER
        value, best = min(known, key=lambda pair: (pair[0] if lower else -pair[0], pair[1]))
        yield "best round", f"{best} ({key.replace('_', ' ')} {_loss(value)})"
        yield f"{key.replace('_', ' ')} by round", sparkline([value for value, _ in known])


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return ``values`` as small bars, from the least to the largest; of more than ``width`` evenly spread ones."""
    n, low, high = len(values), min(values), max(values)
    shown = values if n <= width else [values[i * (n - 1) // (width - 1)] for i in range(width)]
    return "".join(BARS[round((len(BARS) - 1) * (x - low) / ((high - low) or 1.0))] for x in shown)
