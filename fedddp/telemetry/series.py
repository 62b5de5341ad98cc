"""Name the scalars of a round for TensorBoard, keep back those that never change, and arrange the custom page."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ..tasks.metrics import Target
from .telemetry import Metrics, RoundRecord, primary

LEARNING, CLIENTS, PRIVACY, COST, SYSTEM = "1 learning", "2 clients", "3 privacy", "4 cost", "5 system"
"""Groups of cards; TensorBoard sorts them by name."""
FAN = {"10th percentile": 0.1, "median": 0.5, "90th percentile": 0.9}
OTHER = {
    "attack_success": f"{LEARNING}/attack success",
    "clients_mean_accuracy": f"{LEARNING}/accuracy of the clients' mean",
    "clients_mean_loss": f"{LEARNING}/loss of the clients' mean",
    "train_loss": f"{LEARNING}/loss train",
    "update_norm": f"{CLIENTS}/update norm",
    "update_cosine": f"{CLIENTS}/update cosine",
    "participants": f"{CLIENTS}/participants",
    "failures": f"{CLIENTS}/failures",
    "epsilon": f"{PRIVACY}/epsilon",
    "seconds_train": f"{SYSTEM}/seconds train",
    "seconds_aggregate": f"{SYSTEM}/seconds aggregate",
    "seconds_evaluate": f"{SYSTEM}/seconds evaluate",
}
"""The card of an entry of ``metrics.jsonl``."""
TOTALS = {"bytes_sent": f"{COST}/bytes sent per rank, total", "seconds": f"{COST}/seconds, total"}
"""The card of the sum of an entry over the rounds so far."""
Scalars = dict[str, float]


class Naming:
    """The scalars of rounds, one after the other. ``measured``: what a report's ``train_accuracy`` is."""

    def __init__(self, measured: str, rate: Callable[[int], float | None] | None, target: Target | None) -> None:
        self._measured, self._rate, self._target = measured, rate, target
        self._aim = [target.key] if target else []
        self._totals = dict.fromkeys(TOTALS, 0.0)

    def of(self, m: Metrics) -> Scalars:
        """The scalars of a line of ``metrics.jsonl``."""
        shown = {primary([m]), "test_accuracy", "test_loss", f"test_{self._measured}", *self._aim}
        found = {f"{LEARNING}/{k.removeprefix('test_')} test": m.get(k) for k in shown}
        found |= {card: m.get(key) for key, card in OTHER.items()}
        for key, card in TOTALS.items():
            self._totals[key] += m.get(key) or 0.0
            found[card] = self._totals[key]
        for whose, key in (("personal", "personal"), ("global", "global_on_clients")):
            for which, figure in (("", "mean"), (", worst tenth", "worst10")):
                found[f"{CLIENTS}/{self._measured} {whose}{which}"] = m.get(f"{key}_{self._measured}_{figure}")
        found[f"{SYSTEM}/imbalance"] = m.get("imbalance") if m.get("bytes_sent") else None  # a single rank has none
        found[f"{LEARNING}/learning rate"] = self._rate(m["round"]) if self._rate else None
        return {tag: value for tag, value in found.items() if value is not None}

    def of_record(self, record: RoundRecord) -> Scalars:
        """The scalars of a round."""
        found, trained = self.of(record.metrics), record.report.train_accuracy
        if trained is not None:
            found[f"{LEARNING}/{self._measured} train"] = trained
        losses = record.report.per_client.get("train_loss", torch.empty(0))
        if len(losses) > 1:
            found |= {f"{CLIENTS}/loss, {name}": float(losses.double().quantile(q)) for name, q in FAN.items()}
        return found

    @property
    def target(self) -> Scalars:
        """A line at the target, for the custom page; empty without a target."""
        return {f"{LEARNING}/target {self._target.metric}": self._target.value} if self._target else {}


class Series:
    """Scalars, of which one that never changes is not written: a card of it would show nothing.

    Until a second value comes the first and the last point are kept. ``past``: the scalars of the rounds before a
    resume, by round; what they do not have may have been written already.
    """

    def __init__(self, write: Callable[..., None], past: Mapping[int, Scalars]) -> None:
        self._write: Callable[..., None] = lambda *_: None
        self._kept: dict[str, list[tuple[float, int, float]]] = {}
        self.shown: set[str] = set()
        self._resumed = False
        for t, scalars in past.items():
            self.add(scalars, t)
        self._write, self._resumed = write, bool(past)

    def add(self, scalars: Scalars, t: int) -> None:
        for tag, value in scalars.items():
            point, kept = (value, t, time.time()), self._kept.setdefault(tag, [])
            if tag not in self.shown and ((kept[:1] and value != kept[0][0]) or (self._resumed and not kept)):
                self.flush([tag])
            if tag in self.shown:
                self._write(tag, *point)
            else:
                kept[1:] = [point]

    def flush(self, tags: Iterable[str]) -> None:
        """Write what is kept of ``tags``, and all that follows."""
        for tag in tags:
            for point in self._kept.pop(tag, []):
                self._write(tag, *point)
            self.shown.add(tag)


def layout(tags: Iterable[str], primary: str) -> dict[str, dict[str, list[object]]]:
    """The custom page for the scalars ``tags``: title of a section -> title of a chart -> kind and patterns of tags.

    Charts of runs that TensorBoard shows together are one where title and patterns are the same.
    """
    tags = sorted(tags)
    ends = (" test", " train")
    metrics = dict.fromkeys(
        t.split("/")[1].rsplit(" ", 1)[0] for t in tags if t.startswith(LEARNING) and t.endswith(ends)
    )
    lines = {f"{m}: test, train, target": ("learning", f"{LEARNING}/({m} (test|train)|target {m})$") for m in metrics}
    lines |= {
        "personal and global models": ("clients", f"{CLIENTS}/.* (personal|global)"),
        "drift: cosine between updates": ("clients", f"{CLIENTS}/update cosine"),
        "epsilon": ("privacy", f"{PRIVACY}/epsilon"),
        "seconds of a round": ("cost", f"{SYSTEM}/seconds"),
        "bytes sent per rank, total": ("cost", f"{TOTALS['bytes_sent']}"),
    }
    page: dict[str, dict[str, list[object]]] = {section: {} for section in ("learning", "clients", "privacy", "cost")}
    for title, (section, pattern) in lines.items():
        if any(re.match(pattern, tag) for tag in tags):
            page[section][title] = ["Multiline", [pattern]]
    if "epsilon" in page["privacy"]:
        page["privacy"] = {
            f"{primary} and epsilon": ["Multiline", [f"{LEARNING}/{primary} test$", lines["epsilon"][1]]]
        }
    fan = [f"{CLIENTS}/loss, {name}" for name in ("median", "10th percentile", "90th percentile")]
    if set(fan) <= set(tags):
        page["clients"]["clients' training loss: 10th to 90th percentile"] = ["Margin", fan]
    return {section: charts for section, charts in page.items() if charts}


def past(naming: Naming, history: Sequence[Metrics]) -> dict[int, Scalars]:
    """The scalars of earlier rounds, by round."""
    return {m["round"]: naming.of(m) for m in history}
