"""Write ``metrics.jsonl``, ``ledger.jsonl``, ``summary.json`` and ``status.json`` of a run folder."""

from __future__ import annotations

import json
from dataclasses import asdict

from ..checkpoints.durable import writing
from ..checkpoints.run_folder import RunFolder
from .clients_file import TRAINED
from .telemetry import Metrics, RoundRecord

GO_ON = "free space, then continue from the last checkpoint with --run.resume=auto"


class Files:
    """Appends one line per round; each round is there exactly once, also after a resume."""

    def __init__(self, folder: RunFolder, rounds: int) -> None:
        self._folder, self._rounds = folder, rounds
        self._metrics = (folder.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._ledger = (folder.path / "ledger.jsonl").open("a", encoding="utf-8")

    def round(self, record: RoundRecord) -> None:
        sent = [asdict(entry) for entry in record.sent]
        with writing(f"the metrics of round {record.metrics['round']} in {self._folder.path}", GO_ON):
            self._metrics.write(json.dumps(record.metrics) + "\n")
            self._metrics.flush()
            self._ledger.write(json.dumps({"round": record.metrics["round"], "sent": sent}) + "\n")
            self._ledger.flush()
        undated = {"updated": None} if record.metrics["seconds"] is None else {}
        self._folder.status("running", round=record.metrics["round"], rounds=self._rounds, **undated)

    def close(self, summary: Metrics | None) -> None:
        with writing(f"the end of the run in {self._folder.path}", GO_ON):
            self._metrics.close()
            self._ledger.close()
            if summary is not None:
                self._folder.write("summary.json", json.dumps(summary, indent=1))
        if summary is not None:
            self._folder.status("done", round=summary["rounds"], rounds=self._rounds)
        self._folder.release()


def rewind(folder: RunFolder, rounds: int) -> list[Metrics]:
    """Cut the files to the first ``rounds`` rounds, without a line that is incomplete; the metrics that are left."""
    _rewound(folder, "ledger.jsonl", rounds)
    if (folder.path / TRAINED).exists():
        _rewound(folder, TRAINED, rounds)
    return _rewound(folder, "metrics.jsonl", rounds)


def _rewound(folder: RunFolder, name: str, rounds: int) -> list[Metrics]:
    path = folder.path / name
    kept: list[Metrics] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            if entry["round"] <= rounds:
                kept.append(entry)
        except (ValueError, TypeError, KeyError, RecursionError):  # UnicodeDecodeError among them
            break
    folder.write(name, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept
