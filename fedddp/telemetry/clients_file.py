"""Write who took part (``clients.jsonl``, a line per round) and, at the end, a line per client (``clients.csv``)."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping

from ..checkpoints.run_folder import RunFolder
from ..data import Excerpt
from ..evaluation.clients import ClientScores
from .telemetry import Metrics, RoundRecord

TRAINED = "clients.jsonl"


class ClientsFile:
    """Lists the clients of ``owners`` with what the level of privacy lets rank 0 know of each.

    Labels are in ``owners`` only where they may be known. A report that names no client has no losses, and then neither
    rounds nor scores are listed: a personal model that has changed tells that its client was drawn.
    """

    def __init__(self, folder: RunFolder, owners: Excerpt) -> None:
        self._folder, self._owners = folder, owners
        self._rounds = 0  # of this process
        self._scores: ClientScores | None = None

    def round(self, record: RoundRecord) -> None:
        self._rounds += 1
        losses = record.report.losses
        if losses is None:
            return
        self._scores = record.clients or self._scores
        line = {"round": record.metrics["round"], "loss": losses, "failed": record.report.failed}
        with (self._folder.path / TRAINED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self, summary: Metrics | None) -> None:
        if summary is not None and (self._rounds or not (self._folder.path / "clients.csv").exists()):
            self._folder.write("clients.csv", self._table())

    def _table(self) -> str:
        columns = self._owned() | self._trained() | self._scored()
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["client", *columns])
        rows.writerows([k, *(c.get(k, "") for c in columns.values())] for k in self._owners.clients.tolist())
        return text.getvalue()

    def _owned(self) -> dict[str, Mapping[int, object]]:
        clients, counts = self._owners.clients.tolist(), self._owners.counts
        columns: dict[str, Mapping[int, object]] = {
            "examples": dict(zip(clients, counts.sum(axis=1).tolist(), strict=True))
        }
        if self._owners.by_label:
            columns["labels"] = {
                k: " ".join(f"{label}:{n}" for label, n in enumerate(row.tolist()) if n)
                for k, row in zip(clients, counts, strict=True)
            }
        return columns

    def _trained(self) -> dict[str, Mapping[int, object]]:
        path = self._folder.path / TRAINED
        if not path.exists():
            return {}
        rounds, failures, loss = Counter[int](), Counter[int](), dict[int, object]()
        with path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                losses = {int(k): value for k, value in line["loss"].items()}
                rounds.update(losses.keys())
                failures.update(line["failed"])
                loss |= losses
        clients = self._owners.clients.tolist()
        counted = [{k: n[k] for k in clients} for n in (rounds, failures)]
        return dict(zip(("rounds", "failures", "loss"), (*counted, loss), strict=True))

    def _scored(self) -> dict[str, Mapping[int, object]]:
        """The last scores; of a population that is sampled for them, of the sample."""
        if not (s := self._scores):
            return {}
        spreads = {"personal": s.personal, "global": s.global_model}
        return {
            f"{name}_{s.measured}": dict(zip(s.ids, spread.accuracy.tolist(), strict=True))
            for name, spread in spreads.items()
        }
