"""Collect one record per round and pass it to sinks (files, progress, TensorBoard), which rank 0 alone has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ..comm import Comm
from ..comm.ledger import Entry, by_purpose
from ..evaluation.clients import ClientScores
from ..evaluation.server import Score
from ..privacy import Guarantee
from ..tasks.metrics import LOWER, Target
from ..types import Mean, Report, ServerState

BESIDE = ("attack_success", "clients_mean_accuracy")
"""Metrics of further evaluations, where there are any."""
METRIC = "metric."
"""How names of entries of ``ServerState.extra`` begin, [1], that an algorithm reports in each round."""
Metrics = dict[str, Any]
"""One line of ``metrics.jsonl``."""

ENOUGH = 10
"""Number of failed clients after which a run without any success ends (all clients, if there are fewer)."""


@dataclass(frozen=True)
class RoundRecord:
    """A finished round: its metrics, and the results they were made from."""

    metrics: Metrics
    report: Report
    score: Score | None
    sent: tuple[Entry, ...] = ()
    """Messages that this rank sent since the last record, by purpose."""
    clients: ClientScores | None = None


class Sink(Protocol):
    """A receiver of records. ``close`` is called once, with the summary, or with None if the run did not complete.

    An error of a sink ends the run, unless the sink is wrapped in `Beside`.
    """

    def round(self, record: RoundRecord) -> None: ...

    def close(self, summary: Metrics | None) -> None: ...


class Stopwatch:
    """The seconds of one round, measured on this rank.

    ``train`` is the slowest rank's training; ``aggregate`` is the time from the last rank's arrival to the new model:
    the collective and the server's step, without the waiting for others. All ranks began when the last collective
    completed (``synced_at``), from which the others' training times are counted.
    """

    def __init__(self, synced_at: float) -> None:
        self._synced_at = self._mark = synced_at
        self._arrived = synced_at
        self.train = self.aggregate = self.evaluate = 0.0

    def arrived(self) -> None:
        """Record that this rank has trained its clients."""
        self._arrived = time.perf_counter()

    def aggregated(self, report: Report) -> None:
        """Record that the server's step is done."""
        self._mark = time.perf_counter()
        self.train = max(report.seconds_train, default=0.0)
        last_arrival = max(self._arrived, self._synced_at + self.train)
        self.aggregate = max(0.0, self._mark - last_arrival)

    def evaluated(self) -> None:
        """Record that the evaluation is done, or was not due."""
        self.evaluate = time.perf_counter() - self._mark


class Telemetry:
    """Collects the run's history and passes each round on. Without sinks it is silent, as on every rank but 0.

    Args:
        sinks: receive each round's record.
        history: the metrics of the rounds before.
        target: the metric at which the run stops.
        timed: whether times are recorded; else they are None.
        during: called within a round with the number of clients that this rank has trained, and of all it is to train.
            Not called where nothing is timed: who is drawn is then secret.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        history: Sequence[Metrics] = (),
        target: Target | None = None,
        *,
        timed: bool = True,
        during: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self._during = during
        self._sinks, self.history, self._target = tuple(sinks), list(history), target
        self._bytes_before, self._timed = 0, timed
        self._resumed_after = len(self.history)
        self._failed = 0  # since the start or the resume
        self.barren, self._barren_clients = 0, 0  # last rounds to which nobody contributed, though some tried
        self._recorded_at = time.perf_counter()
        self.learned_before = False  # whether a round before the resumed one had a contribution

    def following(self, blocks: Iterable[tuple[int, ...]], clients: int) -> Iterator[tuple[int, ...]]:
        """Yield the ``blocks`` of this rank's ``clients`` in a round; one that failed may come again."""
        done = 0
        for ids in blocks:
            if self._timed:
                self._during(min(done, clients), clients)
            yield ids
            done += len(ids)

    def round(
        self,
        server: ServerState,
        report: Report,
        mean: Mean,
        score: Score | None,
        clock: Stopwatch,
        comm: Comm,
        spent: Guarantee | None = None,
        clients: ClientScores | None = None,
    ) -> None:
        """Record the round that made ``server``.

        Args:
            spent: the privacy spent so far, with a budget.
            clients: the scores of clients' own models, if these were evaluated.
        """
        now, sent = time.perf_counter(), comm.ledger.take()
        times = {
            "seconds": now - self._recorded_at,  # since the last record: with what was written in between
            "seconds_train": clock.train,
            "seconds_aggregate": clock.aggregate,
            "seconds_evaluate": clock.evaluate,
            "imbalance": clock.train * len(report.seconds_train) / (sum(report.seconds_train) or 1.0),
        }
        metrics: Metrics = {
            "round": server.round,
            **{f"test_{name}": value for name, value in (score.metrics if score else {}).items()},  # the primary first
            "test_accuracy": score.accuracy if score else None,
            "test_loss": _finite(score.loss) if score else None,
            "train_loss": report.train_loss,
            "participants": mean.count,
            "failures": report.failures,
            "examples": report.trained_on,
            **(times if self._timed else dict.fromkeys(times)),
            "bytes_sent": comm.bytes_sent - self._bytes_before,
            "sent": by_purpose(sent),
        }
        drift = {"update_norm": report.update_norm, "update_cosine": report.update_cosine}
        metrics |= {name: value for name, value in drift.items() if value is not None}
        measured = {name: value for name, value in server.extra.items() if name.startswith(METRIC)}
        metrics |= {name.removeprefix(METRIC): _finite(float(value)) for name, value in measured.items()}
        if report.reasons:
            metrics["failure_reasons"] = dict(report.reasons)
        metrics |= score.also if score else {}
        if spent is not None:
            metrics |= {"epsilon": _finite(spent.epsilon), "epsilon_terms": spent.terms}
        if clients is not None:
            metrics |= clients.metrics()
        self._bytes_before, self._recorded_at = comm.bytes_sent, now
        before = self._failed
        self._failed += 0 if report.aborted else report.failures or 0
        if mean.count != 0:
            self.barren = self._barren_clients = 0
        elif report.failures != 0:
            self.barren, self._barren_clients = self.barren + 1, self._barren_clients + (self._failed - before)
        self.history.append(metrics)
        record = RoundRecord(metrics, report, score, sent, clients)
        for sink in self._sinks:
            sink.round(record)

    def summary(self, **more: Any) -> Metrics:
        """The run as a whole; ``clients_per_second`` counts training time only."""
        shown, target = primary(self.history), self._target
        accuracies, values = (
            [v for m in self.history if (v := m.get(k)) is not None] for k in ("test_accuracy", shown)
        )
        best = min if shown.removeprefix("test_") in LOWER else max
        last = next((m for m in reversed(self.history) if m["test_loss"] is not None), {})
        reached = [m["round"] for m in self.history if target and target.met(m.get(target.key))]
        trained = sum(m["seconds_train"] or 0.0 for m in self.history)
        clients = [m["participants"] for m in self.history]
        beside = {name: m[name] for m in self.history for name in BESIDE if name in m}
        return {
            "rounds": self.history[-1]["round"] if self.history else 0,
            f"final_{shown}": values[-1] if values else None,
            f"best_{shown}": best(values, default=None),
            "final_test_accuracy": accuracies[-1] if accuracies else None,
            "best_test_accuracy": max(accuracies, default=None),
            "rounds_to_target": reached[0] if reached else None,
            **{f"final_{k}": v for k, v in last.items() if k.startswith("test_") and k not in ("test_accuracy", shown)},
            **self._final_of_clients(),
            **{f"final_{name}": value for name, value in beside.items()},
            "failures": self.failures if any(m["failures"] is not None for m in self.history) else None,
            **more,
            "seconds_total": sum(m["seconds"] for m in self.history) if self._timed else None,
            "clients_per_second": sum(clients) / trained if trained and None not in clients else None,
        }

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed clients over all rounds, by reason as far as this rank knows it."""
        reasons: Counter[str] = Counter()
        for m in self.history:
            reasons.update(m.get("failure_reasons", {}))
        unknown = sum(m["failures"] or 0 for m in self.history) - reasons.total()
        return dict(reasons) | ({"reason not recorded": unknown} if unknown > 0 else {})

    def _final_of_clients(self) -> Metrics:
        """The last scores of clients' own models, if these were evaluated."""
        last = next((m for m in reversed(self.history) if "personal_clients" in m), {})
        return {
            f"final_{k}": v
            for k, v in last.items()
            if k.startswith(("personal_", "global_on_clients")) and k != "personal_clients"
        }

    def close(self, summary: Metrics | None) -> None:
        """Close the sinks: the run is over."""
        for sink in self._sinks:
            sink.close(summary)

    def abandon(self) -> None:
        """Close the sinks after an error, ignoring errors that follow from it."""
        for sink in self._sinks:
            with suppress(Exception):
                sink.close(None)

    def hopeless(self, population: int) -> bool:
        """Whether all clients failed so far, or for many rounds, enough to expect the same of the others."""
        return self.stalled(population) or (self._failed >= min(population, ENOUGH) and self.nothing_learned)

    def stalled(self, population: int) -> bool:
        """Whether the last rounds brought nothing: ten, or three in which ten clients failed (or all there are)."""
        return self.barren >= ENOUGH or (self.barren >= 3 and self._barren_clients >= min(population, ENOUGH))

    @property
    def nothing_learned(self) -> bool:
        """Whether every client failed in every round so far; the same answer on every rank."""
        rounds = (self.history[t] for t in range(self._resumed_after, len(self.history)))  # no copy: asked every round
        return not self.learned_before and all(m["participants"] == 0 and m["failures"] != 0 for m in rounds)


def primary(history: Sequence[Metrics]) -> str:
    """The key of the metric that is shown first, the task's primary one, in lines of ``metrics.jsonl``."""
    first = (next((k for k in m if k.startswith("test_")), "") for m in history)
    known = (k for k, m in zip(first, history, strict=True) if m.get(k) is not None)
    return next(known, "test_loss" if any(m.get("test_loss") is not None for m in history) else "test_accuracy")


class LastScore:
    """A sink that keeps the last evaluation on the test set; None without."""

    score: Score | None = None

    def round(self, record: RoundRecord) -> None:
        self.score = record.score or self.score

    def close(self, summary: Metrics | None) -> None:
        pass


def now_and_then(round: int) -> bool:
    """Whether something that need not be shown each round is: in rounds 1, 2, 5, 10, 20, 50, ..."""
    return str(round).rstrip("0") in ("1", "2", "5")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
