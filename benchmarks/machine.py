"""Where a figure was measured, and the file that keeps it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fedddp.telemetry.environment import cpu

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"


def describe(folders: Iterable[str | Path | None] = ()) -> dict[str, Any]:
    """The machine, the software, the command. Of ``folders`` in the command only the last name is kept."""
    command = " ".join(["python -m", _module(), *sys.argv[1:]])
    for folder in filter(None, folders):
        command = command.replace(str(folder), Path(folder).name)
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "os": f"{platform.freedesktop_os_release().get('PRETTY_NAME', 'Linux')}, {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fedddp": {"version": version("fedddp"), **_commit()},
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """One line for below a table."""
    changed = " with changes" if machine["fedddp"]["dirty"] else ""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {gpus}, {machine['os']}, "
        f"Python {machine['python']}, torch {machine['torch']}, fedddp at {machine['fedddp']['commit']}{changed}"
    )


def keep(out: Path, name: str, record: Mapping[str, Any], figure: Figure | None = None) -> Path:
    """Write ``<name>-<date>-<machine>.json`` and its .png; a second one of a day gets -2."""
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{time.strftime('%Y-%m-%d')}-{_short_name(record['machine'])}"
    number, path = 1, out / f"{stem}.json"
    while path.exists():
        number += 1
        path = out / f"{stem}-{number}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=120)
    return path


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def _commit() -> dict[str, Any]:
    """HEAD, and whether the tree differs from it; earlier records do not count."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--", ".", ":!benchmarks/records")),
    }


def _short_name(machine: Mapping[str, Any]) -> str:
    """The processor's name without what all have in common, the number of cores, the GPU."""
    common = r"\(\w+\)|\b(cpu|processor|with|@.*|\d+-core|intel|amd|nvidia)\b"
    words = [re.sub(common, "", name.lower()) for name in (machine["cpu"], *machine["gpus"][:1])]
    cpu, *gpu = [re.sub(r"[^a-z0-9]+", "-", name).strip("-") for name in words]
    return "-".join(filter(None, [cpu, f"{machine['cores']}c", *gpu]))
