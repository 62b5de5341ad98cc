"""Run folders: ``<run.dir>/<run.name>/``, never overwritten, found again on resume."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps its files; ``resumed`` says that it was there before."""

    path: Path
    resumed: bool

    def write(self, name: str, content: str) -> None:
        """A small file, replaced as a whole."""
        hidden = self.path / f".{name}"
        hidden.write_text(content)
        hidden.replace(self.path / name)

    def status(self, state: str, **more: Any) -> None:
        """``status.json``: "running", "interrupted", "done" or "failed", and when it was written."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.write("status.json", json.dumps({"state": state, **more, "pid": os.getpid(), "updated": stamp}))


def locate(parent: Path, name: str, resume: str) -> RunFolder:
    """The folder of a run that starts or goes on. Nothing is created yet.

    ``never``: a new one, with -2, -3, ... behind the name if it is taken. ``auto``: the newest of that name, or a new
    one. Otherwise the run folder itself; raises ValueError if it is none.
    """
    label = re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "run"
    if resume not in ("never", "auto"):
        path = Path(resume)
        if not (path / "config.toml").is_file():
            raise ValueError(f"run.resume={resume!r}: is not a run folder (it has no config.toml)")
        return RunFolder(path, resumed=True)
    taken = _numbered(parent, label)
    if resume == "auto" and taken:
        return RunFolder(taken[max(taken)], resumed=True)
    number = max(taken, default=0) + 1
    return RunFolder(parent / (label if number == 1 else f"{label}-{number}"), resumed=False)


def _numbered(parent: Path, label: str) -> dict[int, Path]:
    """Run folders of that label by number; the one without a number is number 1."""
    found = {}
    for path in parent.glob(f"{label}*"):
        match = re.fullmatch(re.escape(label) + r"(?:-(\d+))?", path.name)
        if match and path.is_dir():
            found[int(match[1] or 1)] = path
    return found
