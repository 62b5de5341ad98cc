"""Sinks whose errors do not end the run: pictures, TensorBoard, progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .background import Background
from .telemetry import Metrics, RoundRecord, Sink

log = logging.getLogger("fedddp")


class SideWork:
    """Turns an error in a piece of side work into a warning, once per piece and once per reason.

    A request to stop is no `Exception` and passes. A piece that failed is tried again the next time.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    @contextmanager
    def __call__(self, piece: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if self._warned.isdisjoint({piece, reason}):
                log.warning("%s: failed (%s); it is left out, the run continues", piece, reason)
            self._warned |= {piece, reason}


class Beside:
    """A sink whose errors do not end the run."""

    def __init__(self, name: str, sink: Sink, side: SideWork) -> None:
        self._name, self._sink, self._side = name, sink, side

    def round(self, record: RoundRecord) -> None:
        with self._side(self._name):
            self._sink.round(record)

    def close(self, summary: Metrics | None) -> None:
        with self._side(self._name):
            self._sink.close(summary)


class InBackground:
    """A sink that works in a thread beside the training, since drawing takes tenths of a second."""

    def __init__(self, sink: Beside) -> None:
        self._sink, self._background = sink, Background(backlog=100)

    def round(self, record: RoundRecord) -> None:
        self._background.run(self._sink.round, record)

    def close(self, summary: Metrics | None) -> None:
        try:
            self._background.wait()
            self._sink.close(summary)
        finally:
            self._background.close()
