"""``metrics.jsonl``, ``summary.json`` and ``status.json`` of a run folder."""

from __future__ import annotations

import json

from ..run_folder import RunFolder
from .telemetry import Metrics, RoundRecord


class Files:
    """Appends one line a round; each round stands there exactly once, also after a resume."""

    def __init__(self, folder: RunFolder, rounds: int) -> None:
        self._folder, self._rounds = folder, rounds
        self._metrics = (folder.path / "metrics.jsonl").open("a")

    def round(self, record: RoundRecord) -> None:
        self._metrics.write(json.dumps(record.metrics) + "\n")
        self._metrics.flush()
        self._folder.status("running", round=record.metrics["round"], rounds=self._rounds)

    def close(self, summary: Metrics | None) -> None:
        self._metrics.close()
        if summary is not None:
            self._folder.write("summary.json", json.dumps(summary, indent=1))
            self._folder.status("done", round=summary["rounds"], rounds=self._rounds)


def rewind(folder: RunFolder, rounds: int) -> list[Metrics]:
    """The metrics of the first ``rounds`` rounds; later lines, and one that was cut off, are removed from the file."""
    path = folder.path / "metrics.jsonl"
    kept: list[Metrics] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            metrics = json.loads(line)
        except ValueError:
            break
        if metrics["round"] <= rounds:
            kept.append(metrics)
    folder.write("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))
    return kept
