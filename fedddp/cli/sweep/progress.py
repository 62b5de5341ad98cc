"""What the person at the terminal sees of a sweep: a bar of its runs and one of the rounds, or plain lines."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...telemetry import console, on_terminal
from .grid import Run, Sweep
from .run import Ended, Standing


class Teller(Protocol):
    """Hears of each run as it starts, of its rounds, and how it ended."""

    def started(self, run: Run, round: int) -> None: ...

    def round(self, round: int) -> None: ...

    def ended(self, run: Run, ended: Ended, accuracy: float | None) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line a run. Where there is no terminal, and under the bars of `Bars`."""

    def __init__(self, done: int, runs: int, console: Console | None = None) -> None:
        self._done, self._runs, self._console = done, runs, console
        self._began = time.monotonic()

    def started(self, run: Run, round: int) -> None:
        self._began = time.monotonic()
        if self._console is None:
            after = f", going on after round {round}" if round else ""
            self._say(f"run {self._done + 1}/{self._runs}  {run.name}  {run.config.run.rounds} rounds{after}")

    def round(self, round: int) -> None:
        pass

    def ended(self, run: Run, ended: Ended, accuracy: float | None) -> None:
        self._done += 1
        what = f"test accuracy {accuracy:.4f}" if accuracy is not None else "done"
        told = what if ended.done else f"failed: {ended.reason}"
        seconds = time.monotonic() - self._began
        self._say(f"run {self._done}/{self._runs}  {run.name}  {told}  ({seconds:.1f} s)")

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        if self._console:
            self._console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


class Bars(Lines):
    """The same lines, over a bar of the runs and a bar of the current run's rounds."""

    def __init__(self, done: int, runs: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns)
        super().__init__(done, runs, self._progress.console)
        self._all = self._progress.add_task("runs", total=runs, completed=done)
        self._one = self._progress.add_task("rounds", total=None)
        self._progress.start()

    def started(self, run: Run, round: int) -> None:
        super().started(run, round)
        self._progress.reset(self._one, total=run.config.run.rounds, completed=round, description=run.name)

    def round(self, round: int) -> None:
        self._progress.update(self._one, completed=round)

    def ended(self, run: Run, ended: Ended, accuracy: float | None) -> None:
        super().ended(run, ended, accuracy)
        self._progress.update(self._all, completed=self._done)

    def close(self) -> None:
        self._progress.stop()


def teller(done: int, runs: int) -> Teller:
    """Bars on a terminal, else lines."""
    return Bars(done, runs) if on_terminal() else Lines(done, runs)


def show_grid(sweep: Sweep, standings: dict[str, Standing]) -> None:
    """The runs in a table, and what would be done with each."""
    table = Table(title=f"{sweep.folder}: {len(standings)} runs, {sweep.settings.nproc} rank(s) each")
    for column in ("run", *(axis.name for axis in sweep.axes), "rounds", "state"):
        table.add_column(column, overflow="fold")
    for run in sweep.runs:
        if run.name in standings:
            found = standings[run.name]
            state = f"goes on after round {found.round}" if found.kind == "begun" else found.kind
            table.add_row(run.name, *run.labels.values(), str(run.config.run.rounds), state)
    console().print(table)
