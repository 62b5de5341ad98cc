"""``fedddp runs`` and ``fedddp rm``: list the runs below a folder, and remove some. Neither imports torch."""

import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..checkpoints.lock import RENEWED, Busy, hold, silent
from ..checkpoints.run_folder import is_run, read_lines, settle, state_of
from ..errors import UsageError

EVERY = 2.0
"""Seconds between two looks of ``--watch``."""
SILENT = 3 * RENEWED
"""Seconds after which a run that does not renew its lock is shown as silent: its process may be stopped."""


@dataclass(frozen=True)
class Listed:
    """A run as it is listed.

    Attributes:
        state: running, interrupted, done or failed; of a process that does not renew its lock, for how long.
        rounds: finished rounds, and those that there are to be.
        metric: the newest value of the metric shown first.
        seconds: of the finished rounds; None where no time is recorded.
        size: bytes of all files.
    """

    name: str
    state: str
    rounds: str
    metric: str
    seconds: float | None
    size: int

    @classmethod
    def of(cls, path: Path, name: str) -> "Listed":
        """Read what a run folder holds; what is missing or damaged is left empty."""
        settle(path)
        state, status = state_of(path)
        if state == "running" and (still := silent(path)) > SILENT:
            state = f"running, silent for {still:.0f} s"
        lines = [m for m in read_lines(path / "metrics.jsonl") if m]
        times = [m["seconds"] for m in lines if isinstance(m.get("seconds"), int | float)]
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rounds = f"{status.get('round', len(lines))}/{status.get('rounds', '?')}"
        return cls(name, state, rounds, _metric(lines), sum(times) if times else None, size)

    @property
    def cells(self) -> tuple[str, ...]:
        """One text per column."""
        minutes = "" if self.seconds is None else f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02d}"
        return self.name, self.state, self.rounds, self.metric, minutes, decimal(self.size)


def answer(args: Namespace) -> str:
    """Return the table of runs; with ``--watch`` show it until Ctrl-C. See `fedddp.cli.options.runs`."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    if not args.watch:
        with console.capture() as text:
            console.print(table(args.folder))
        return text.get().rstrip()
    if not console.is_terminal:
        raise UsageError("--watch: shows a table that changes, which takes a terminal; leave it out")
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(table(args.folder), refresh=True)
                time.sleep(EVERY)
    except KeyboardInterrupt:
        return ""


def table(folder: Path) -> Table:
    """Return the runs below ``folder``, those of sweeps included. Raises UsageError if there are none."""
    found = [path.parent for path in sorted(folder.rglob("config.toml")) if is_run(path.parent)]
    if not found:
        raise UsageError(f"{folder}: there is no run below it; name the folder that run.dir stands for")
    shown = Table()
    for column, side in zip(("run", "state", "round", "metric", "time", "size"), "lllrrr", strict=True):
        shown.add_column(column, justify="right" if side == "r" else "left", overflow="fold")
    for path in found:
        name = path.name if path == folder else str(path.relative_to(folder))
        shown.add_row(*map(Text, Listed.of(path, name).cells))
    return shown


def remove(args: Namespace) -> str:
    """Remove run folders, if all that are named can be, and say what was removed. See `fedddp.cli.options.rm`."""
    runs: Sequence[Path] = args.runs
    with ExitStack() as locks:
        for path in runs:
            _check_removable(path)
            try:
                locks.callback(hold(path).release)
            except Busy as error:
                raise UsageError(f"{error}; stop that first, nothing was removed") from None
            except OSError as error:
                raise UsageError(f"{path}: cannot be removed ({error.strerror}); nothing was removed") from None
        size = sum(Listed.of(path, "").size for path in runs)
        what = f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {decimal(size)}: {', '.join(map(str, runs))}"
        if not args.yes and not _confirmed(what):
            return "nothing was removed"
        for path in runs:
            shutil.rmtree(path)
    return f"removed {what}"


def _check_removable(path: Path) -> None:
    """Raise UsageError for what is no run folder, or one that is being written."""
    if path.is_symlink() or not is_run(path):
        raise UsageError(f"{path}: is not a run folder (with config.toml and status.json); nothing was removed")
    if state_of(path)[0] == "running":
        raise UsageError(f"{path}: is running; stop it first (Ctrl-C, or SIGTERM to its launcher), nothing was removed")


def _confirmed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("--yes: there is no terminal to ask on; give it to remove the runs. Nothing was removed")
    return input(f"remove {what}? [y/N] ").strip().lower() in ("y", "yes")


def _metric(lines: Sequence[dict[str, Any]]) -> str:
    """The newest value of the metric that stands first in its line."""
    for m in reversed(lines):
        for key, value in m.items():
            if key.startswith("test_") and isinstance(value, int | float):
                return f"{key.removeprefix('test_').replace('_', ' ')} {value:.4g}"
    return ""
