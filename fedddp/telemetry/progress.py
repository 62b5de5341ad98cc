"""Print a run's progress: a bar on a terminal, lines elsewhere, and the summary."""

from __future__ import annotations

import logging
import math

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .beside import SideWork
from .telemetry import Metrics, RoundRecord, now_and_then, primary
from .terminal import console, on_terminal

log = logging.getLogger("fedddp")

DIVERGED = 1e4
"""A test loss above this means divergence: guessing costs log C, 11.5 for 100,000 classes."""


class ProgressBar:
    """A progress bar with round, accuracy and time left."""

    def __init__(self, done: int, rounds: int) -> None:
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[result]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            speed_estimate_period=math.inf,  # the default, the last 30 s, is less than a slow round
        )
        self._task = self._progress.add_task("", total=rounds, completed=done, result="training")
        self._progress.advance(self._task, 0)  # starts the clock of the first round
        self._progress.start()

    def round(self, record: RoundRecord) -> None:
        m = record.metrics
        result = next(iter(_figures(m)), "training")
        self._progress.update(self._task, completed=m["round"], result=result)

    def close(self, summary: Metrics | None) -> None:
        self._progress.stop()


class ProgressLines:
    """One line per round."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def round(self, record: RoundRecord) -> None:
        m = record.metrics
        parts = [f"round {m['round']:{len(str(self._rounds))}d}/{self._rounds}"]
        parts += _figures(m)
        if record.clients is not None:
            own, common, measured = record.clients.personal, record.clients.global_model, record.clients.measured
            figures = f"personal {own.mean:.4f}, {own.worst10:.4f}, global {common.mean:.4f}"
            parts.append(f"{measured} on clients (mean, worst tenth): {figures}")
        if "attack_success" in m:
            parts.append(f"attack success {m['attack_success']:.4f}")
        if m["train_loss"] is not None:
            parts.append(f"train loss {_loss(m['train_loss'])}")
        if m["participants"] is not None:
            many = "" if m["participants"] == 1 else "s"
            parts.append(f"{m['participants']} client{many}" + (f", {m['failures']} failed" if m["failures"] else ""))
        if m.get("epsilon") is not None:
            parts.append(f"epsilon {m['epsilon']:.3f}")
        if m["seconds"] is not None:
            parts.append(
                f"{m['seconds']:.1f} s (train {m['seconds_train']:.1f}, aggregate {m['seconds_aggregate']:.2f}, "
                f"evaluate {m['seconds_evaluate']:.1f})"
            )
        print("  ".join(parts), flush=True)
        if record.score is not None and (now_and_then(m["round"]) or m["round"] == self._rounds):
            for name, text in record.score.texts.items():
                print(f"  {name}: {text!r}", flush=True)

    def close(self, summary: Metrics | None) -> None:
        pass


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
        if score is None or self._warned or score.loss <= DIVERGED:
            return
        self._warned = True
        log.warning(
            "round %d: the test loss is %.3g: training diverges; lower client.optimizer.lr, or set client.clip_norm",
            record.metrics["round"],
            score.loss,
        )

    def close(self, summary: Metrics | None) -> None:
        pass


def progress(kind: str, done: int, rounds: int) -> list[ProgressBar | ProgressLines]:
    """The sink for ``telemetry.progress``; none if that is off."""
    if kind == "off":
        return []
    if kind == "bar" or (kind == "auto" and on_terminal()):
        return [ProgressBar(done, rounds)]
    return [ProgressLines(rounds)]


def _counted(name: str, value: float | None) -> str:
    """A failure with its number, or a delta with its epsilon."""
    return f"{value:,} x {name}" if isinstance(value, int) else f"{'-' if value is None else f'{value:.4g}'} at {name}"


def summary_table(summary: Metrics) -> None:
    """Print a run's summary as a table."""
    table = Table(title="fedddp", show_header=False)
    for key, value in summary.items():
        if isinstance(value, dict):
            value = "\n".join(_counted(name, n) for name, n in value.items()) or 0
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(key.replace("_", " "), "-" if value is None else shown)
    with SideWork()("summary table"):
        console().print(table)
