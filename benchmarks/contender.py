"""One program under measurement: started, asked for a round at a time, stopped. See contenders/protocol.py."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "contenders"
START, ROUND, END = 600.0, 3600.0, 20.0  # seconds of patience


class Unavailable(RuntimeError):
    """A contender that did not start, or that died; says why."""


@dataclass
class Outcome:
    """What a contender did: seconds of each start (from process start to being ready for a round), each round.

    ``peak_mib`` is the peak resident memory of every rank (of every process below one that has no ranks).
    ``reason`` says why it is not there, or why it ended early.
    """

    version: str = ""
    starts: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    warm_up: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Contender:
    """A subprocess that speaks the line protocol, and what came of it."""

    def __init__(self, name: str, script: str, python: Path, work: Path, words: Sequence[str], threads: int) -> None:
        self.name, self.outcome = name, Outcome()
        self._command = [str(python), str(SCRIPTS / f"{script}.py"), str(work), *words]
        self._env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._stderr = work / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.stderr"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start and wait until all is loaded. A failure is kept in ``outcome.reason``."""
        if self.outcome.reason:
            return
        began = time.perf_counter()
        try:
            with self._stderr.open("w") as stderr:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    env=self._env,
                    start_new_session=True,  # Ctrl-C comes to the orchestrator, which ends it in good order
                )
            self.outcome.version = self._answer(START)["version"]
        except (OSError, Unavailable) as error:
            self.outcome.reason = str(error)
            self.stop()
        else:
            self.outcome.starts.append(time.perf_counter() - began)

    def round(self) -> None:
        """One round; the first is the warm-up. A failure is kept in ``outcome.reason``."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
            record = self._answer(ROUND)
        except (OSError, Unavailable) as error:
            self.outcome.reason = str(error)
            self.stop()
            return
        if self.outcome.warm_up is None:
            self.outcome.warm_up = record
        else:
            self.outcome.rounds.append(record)

    def stop(self) -> None:
        """End it: by asking, else by force."""
        process, self._process = self._process, None
        if process is None:
            return
        self.outcome.peak_mib = peak_memory(process.pid) or self.outcome.peak_mib
        try:
            process.communicate("quit\n", timeout=END)
        except (subprocess.TimeoutExpired, OSError):
            below = descendants(process.pid)
            process.terminate()
            try:
                process.wait(END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in below:  # ranks are in sessions of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _answer(self, patience: float) -> dict[str, Any]:
        """Its next line. Raises Unavailable if none comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not wait([self._process.stdout.fileno()], patience):
            raise Unavailable(f"no answer for {patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        """The most informative line of stderr: the last that names an error, before those of torchrun."""
        lines = [line.strip() for line in self._stderr.read_text(errors="replace").splitlines() if line.strip()]
        lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in lines]
        named = [x for x in lines if re.match(r"([\w.]*(Error|Exception)|fedddp)\b.*: ", x)]
        torchruns = [x for x in named if "ChildFailedError" in x]
        found = [x for x in named if x not in torchruns] or lines
        return found[-1][:200] if found else "it ended without a message"


def peak_memory(pid: int) -> list[float]:
    """MiB that each rank below a process had in memory at most; of all processes there, if none is a rank."""
    below = [pid, *descendants(pid)]
    ranks = {p: rank for p in below if (rank := _rank(p)) is not None}
    return [peak for p in sorted(ranks, key=ranks.__getitem__) or below if (peak := high_water(p))]


def descendants(pid: int) -> list[int]:
    """Processes started by a process, and by those."""
    parents = _parents()
    found, new = [], [pid]
    while new:
        new = [p for p, parent in parents.items() if parent in new]
        found += new
    return found


def _parents() -> dict[int, int]:
    """Every process and its parent."""
    status = {int(p.name): _read(p / "stat") for p in Path("/proc").glob("[0-9]*")}
    return {pid: int(stat.rpartition(")")[2].split()[1]) for pid, stat in status.items() if stat}


def _rank(pid: int) -> int | None:
    """torchrun's rank that a process is, if it is one."""
    match = re.search(r"(?:^|\0)RANK=(\d+)", _read(Path(f"/proc/{pid}/environ")))
    return int(match[1]) if match else None


def high_water(pid: int) -> float:
    """MiB of resident memory a process had at most, as Linux counts it."""
    match = re.search(r"VmHWM:\s+(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return int(match[1]) / 1024 if match else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # gone, or another user's
        return ""
