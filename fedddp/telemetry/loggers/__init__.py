"""Further loggers of a run, ``telemetry.loggers``: a sink in a file each; its library is imported only where named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ...errors import OWN_CODE, UsageError, named, reason
from ...registry.choice import import_class
from ...registry.kinds import unfit
from ...registry.optional import imported
from ...registry.spelling import suggestion
from ..beside import InBackground
from ..telemetry import Metrics, RoundRecord, Sink
from .base import Run
from .mlflow import MLflow
from .wandb import WandB

log = logging.getLogger("fedddp")


class Logger(Protocol):
    """What opens a logger: called with the run, it returns a sink; a class whose constructor takes `Run`, mostly."""

    def __call__(self, run: Run, /) -> Sink: ...


LOGGERS: dict[str, Logger] = {"wandb": WandB, "mlflow": MLflow}
"""Loggers by name, which is that of their library, too, and of the extra that installs it."""


def find(names: Sequence[str]) -> dict[str, Logger]:
    """Return what opens each of ``telemetry.loggers``. Raises UsageError for an unknown one or a missing library."""
    return {name: _found(name) for name in names}


def _found(name: str) -> Logger:
    key = f"telemetry.loggers={name!r}"
    if ":" in name:
        with named(key):
            found = import_class(name)
            if wrong := unfit(found, Sink):
                raise UsageError(f"{key}: {wrong}", code="import-kind")
            return found
    if name not in LOGGERS:
        known = ", ".join(LOGGERS)
        raise UsageError(f"{key}: should be {known} or package.module:Class{suggestion(name, LOGGERS)}")
    imported(name, name, key)
    return LOGGERS[name]


def open_loggers(loggers: Mapping[str, Logger], run: Run) -> list[Sink]:
    """Return sinks that work beside the training: a slow logger delays no round, and one that fails ends none."""
    return [InBackground(Droppable(name, lambda open=open: open(run))) for name, open in loggers.items()]


class Droppable:
    """A logger that is opened with the first record, and dropped with a warning as soon as it fails."""

    def __init__(self, name: str, open: Callable[[], Sink]) -> None:
        self._name, self._open = name, open
        self._sink: Sink | None = None
        self._dropped = False

    def round(self, record: RoundRecord) -> None:
        self._do(lambda sink: sink.round(record))

    def close(self, summary: Metrics | None) -> None:
        self._do(lambda sink: sink.close(summary))

    def _do(self, work: Callable[[Sink], None]) -> None:
        if self._dropped:
            return
        try:
            self._sink = self._sink or self._open()
            work(self._sink)
        except OWN_CODE as error:
            self._dropped = True
            log.warning(
                "telemetry.loggers: %s failed (%s); it is left out from now on, the run continues",
                self._name,
                reason(error),
            )


__all__ = ["LOGGERS", "Logger", "Run", "find", "open_loggers"]
