"""Write ``metrics.jsonl``, ``ledger.jsonl``, ``summary.json`` and ``status.json`` of a run folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..checkpoints.durable import writing
from ..checkpoints.run_folder import RunFolder
from .clients_file import TRAINED
from .commits import COMMITS
from .telemetry import Metrics, RoundRecord

log = logging.getLogger("fedddp")

NEEDED = ("test_loss", "participants", "failures", "seconds", "seconds_train")
"""Entries of a line of metrics that are numbers or null; the summary is made from them."""
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
            os.fsync(self._metrics.fileno())
            self._metrics.close()
            self._ledger.close()
            if summary is not None:
                self._folder.write("summary.json", json.dumps(summary, indent=1))
        if summary is not None:
            self._folder.status("done", round=summary["rounds"], rounds=self._rounds)


def rewind(folder: RunFolder, rounds: int) -> list[Metrics]:
    """Cut the files to the first ``rounds`` rounds; the metrics that are left.

    A last line that a kill cut off is of a later round. Where another line cannot be read, or a round is missing, a
    warning says which, and the file as it was stays beside the new one.
    """
    _rewound(folder, "ledger.jsonl", rounds, complete=True)
    for name in (TRAINED, COMMITS):
        if (folder.path / name).exists():
            _rewound(folder, name, rounds, complete=False)
    return _rewound(folder, "metrics.jsonl", rounds, complete=True, needed=NEEDED)


def _rewound(folder: RunFolder, name: str, rounds: int, *, complete: bool, needed: Iterable[str] = ()) -> list[Metrics]:
    path = folder.path / name
    content = path.read_bytes() if path.is_file() else b""
    lines, found, unreadable = content.split(b"\n"), dict[int, Metrics](), list[int]()
    cut = lines.pop()  # empty, or what a kill left of a line
    for number, line in enumerate(lines, start=1):
        if (entry := _entry(line, needed)) is None:
            unreadable.append(number)
        elif entry["round"] <= rounds:
            found[entry["round"]] = entry
    if (entry := _entry(cut, needed)) and entry["round"] <= rounds:  # complete but for the line's end
        found[entry["round"]] = entry
    missing = [t for t in range(1, rounds + 1) if t not in found] if complete else []
    if unreadable or missing:
        _keep_damaged(path, content, unreadable, missing)
    kept = [found[t] for t in sorted(found)]
    folder.write(name, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept


def _entry(line: bytes, needed: Iterable[str]) -> Metrics | None:
    """The object of a line; None if it is none, or has no round or no number where the summary needs one."""
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError among them
        return None
    if not isinstance(entry, dict) or type(entry.get("round")) is not int or entry["round"] < 1:
        return None
    return entry if all(isinstance(entry.get(k, ""), int | float | None) for k in needed) else None


def _keep_damaged(path: Path, content: bytes, unreadable: Sequence[int], missing: Sequence[int]) -> None:
    """Keep a file of which a resume loses something, and say what."""
    lost = [f"line {_ranges(unreadable)} cannot be read"] * bool(unreadable)
    lost += [f"round {_ranges(missing)} is missing"] * bool(missing)
    if content:
        path.with_name(f"{path.name}.damaged").write_bytes(content)
    kept = f"; the file as it was is {path.name}.damaged" if content else ""
    log.warning("%s: %s; the run continues, its summary is without that%s", path, ", ".join(lost), kept)


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in words: "1, 4-6"."""
    firsts = [n for n in numbers if n - 1 not in numbers]
    lasts = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))
