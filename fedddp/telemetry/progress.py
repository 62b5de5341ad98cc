"""What the person at the terminal sees: a bar where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .telemetry import Metrics, RoundRecord


class Bar:
    """A progress bar with round, accuracy and time left."""

    def __init__(self, done: int, rounds: int) -> None:
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=rounds, completed=done, told="training")
        self._progress.start()

    def round(self, record: RoundRecord) -> None:
        m = record.metrics
        told = f"test accuracy {m['test_accuracy']:.4f}" if m["test_accuracy"] is not None else "training"
        self._progress.update(self._task, completed=m["round"], told=told)

    def close(self, summary: Metrics | None) -> None:
        self._progress.stop()


class Lines:
    """One line a round."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def round(self, record: RoundRecord) -> None:
        m = record.metrics
        parts = [f"round {m['round']:{len(str(self._rounds))}d}/{self._rounds}"]
        if m["test_accuracy"] is not None:
            parts.append(f"test accuracy {m['test_accuracy']:.4f}")
        elif m["test_loss"] is not None:
            parts.append(f"test loss {m['test_loss']:.4f}")
        if "personal_clients" in m:
            figures = ", ".join(f"{m[f'personal_accuracy_{k}']:.4f}" for k in ("mean", "worst10"))
            parts.append(
                f"on clients (mean, worst tenth): personal {figures}, global {m['global_on_clients_accuracy_mean']:.4f}"
            )
        if "attack_success" in m:
            parts.append(f"attack success {m['attack_success']:.4f}")
        if m["train_loss"] is not None:
            parts.append(f"train loss {m['train_loss']:.4f}")
        if m["participants"] is not None:
            parts.append(f"{m['participants']} clients" + (f", {m['failures']} failed" if m["failures"] else ""))
        if m.get("epsilon") is not None:
            parts.append(f"epsilon {m['epsilon']:.3f}")
        parts.append(
            f"{m['seconds']:.1f} s (train {m['seconds_train']:.1f}, aggregate {m['seconds_aggregate']:.2f}, "
            f"evaluate {m['seconds_evaluate']:.1f})"
        )
        print("  ".join(parts), flush=True)

    def close(self, summary: Metrics | None) -> None:
        pass


def progress(kind: str, done: int, rounds: int) -> list[Bar | Lines]:
    """The sink for ``telemetry.progress``: none if it is off."""
    if kind == "off":
        return []
    if kind == "bar" or (kind == "auto" and sys.stdout.isatty()):
        return [Bar(done, rounds)]
    return [Lines(rounds)]


def summary_table(summary: Metrics) -> None:
    """The run in a table."""
    table = Table(title="fedddp", show_header=False)
    for key, value in summary.items():
        if isinstance(value, dict):
            value = "\n".join(f"{n:,} x {reason}" for reason, n in value.items()) or 0
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(key.replace("_", " "), "-" if value is None else shown)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


class _Stderr(logging.Handler):
    """Writes to whatever sys.stderr is at the time: a live bar replaces it to keep its line."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(rank: int, world_size: int) -> None:
    """Warnings and remarks of this rank as lines that name it."""
    handler = _Stderr()
    handler.setFormatter(
        logging.Formatter(f"fedddp[rank {rank}]: %(message)s" if world_size > 1 else "fedddp: %(message)s")
    )
    logger = logging.getLogger("fedddp")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
