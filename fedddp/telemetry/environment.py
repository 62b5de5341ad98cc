"""Describe the machine and the software of a run, for ``environment.txt`` in its folder."""

import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from rich.filesize import decimal

from .. import __version__
from ..comm.world import local_cores

PATIENCE = 5.0
"""Seconds that git may take: a working folder can be on a slow file system."""


def environment(device: torch.device, ranks: int, threads: int) -> str:
    """Return where a run takes place, a line each: software, machine, and the commit of the working folder.

    Nothing of it is secret: no user, host, path, address or variable.

    Args:
        device: where this rank trains.
        ranks: the number of ranks.
        threads: the number of torch's threads in each.
    """
    gpu = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else "none"
    lines = {
        "fedddp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": ", ".join(_packages()),
        "platform": platform.platform(),
        "cpu": f"{cpu()}, {local_cores()} cores for this process",
        "gpu": gpu,
        "ranks": ranks,
        "threads": f"{threads} per rank",
        "git": _commit() or "the working folder is in no repository",
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


def cpu() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def memory() -> str:
    """Return the most memory that this process has had so far, and that of its GPU."""
    main = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
    return decimal(main) + (f" and {decimal(gpu)} on its GPU" if gpu else "")


def _packages() -> list[str]:
    """Return name and version of what fedddp depends on, of extras what is installed."""
    found = {}
    try:
        for requirement in requires("fedddp") or ():
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if name not in ("fedddp", "torch"):
                found[name] = version(name)
    except PackageNotFoundError:  # a checkout that is not installed
        pass
    return [f"{name} {number}" for name, number in sorted(found.items())]


def _commit() -> str:
    """Return the commit of the working folder and whether tracked files were changed since; empty without git."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}{', with uncommitted changes' if git('status', '--porcelain', '-uno') else ''}"
    except (OSError, subprocess.SubprocessError):
        return ""
