"""Run a grid of experiments and compare them: algorithms x partitions x seeds, or any other keys.

The same command resumes a sweep where it was stopped, within a run too, and leaves out what is done.
"""

import fcntl
import logging
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...comm import interrupt
from ...comm.interrupt import Interrupted
from ...config import UsageError
from ...errors import DONE, FAILED
from ...telemetry import SideWork, console, on_terminal
from ..outcome import asked
from ..slurm import Batch, check_options, start
from . import grid, table
from .grid import GridRun, Sweep
from .latex import as_latex
from .run import Ended, Standing, plan_of, standing, train
from .worker import Worker

log = logging.getLogger("fedddp")

FILES = {"table.md": table.markdown, "table.csv": table.as_csv, "table.tex": as_latex}


class Lines:
    """Shows a line a run: where there is no terminal, and above the bars of `Bars`."""

    def __init__(self, done: int, runs: int, console: Console | None = None) -> None:
        self._done, self._begun, self._runs, self._console = done, done, runs, console
        self._began: dict[str, float] = {}

    def started(self, run: GridRun, round: int) -> None:
        self._begun += 1
        self._began[run.name] = time.monotonic()
        if self._console is None:
            after = f", going on after round {round}" if round else ""
            self._say(f"run {self._begun}/{self._runs}  {run.name}  {run.config.run.rounds} rounds{after}")

    def round(self, run: GridRun, round: int) -> None:
        pass

    def ended(self, run: GridRun, ended: Ended, what: str) -> None:
        self._done += 1
        result = what if ended.done else f"failed: {ended.reason}"
        seconds = time.monotonic() - self._began[run.name]
        self._say(f"run {self._done}/{self._runs}  {run.name}  {result}  ({seconds:.1f} s)")

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        if self._console:
            self._console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


class Bars(Lines):
    """The same lines, over a bar of the runs and a bar of the rounds of each run under way."""

    def __init__(self, done: int, runs: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns)
        super().__init__(done, runs, self._progress.console)
        self._all = self._progress.add_task("runs", total=runs, completed=done)
        self._each: dict[str, TaskID] = {}
        self._progress.start()

    def started(self, run: GridRun, round: int) -> None:
        super().started(run, round)
        self._each[run.name] = self._progress.add_task(run.name, total=run.config.run.rounds, completed=round)

    def round(self, run: GridRun, round: int) -> None:
        self._progress.update(self._each[run.name], completed=round)

    def ended(self, run: GridRun, ended: Ended, what: str) -> None:
        super().ended(run, ended, what)
        self._progress.remove_task(self._each.pop(run.name))
        self._progress.update(self._all, completed=self._done)

    def close(self) -> None:
        self._progress.stop()


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


def run(args: Namespace) -> int:
    """Run the sweep that ``args`` name; see `fedddp.cli.options.sweep`. The exit code: 1 if a run failed."""
    request = asked(args)
    if len(request.files) != 1:
        raise UsageError("give one SWEEP.toml; files that its runs share go into sweep.files")
    sweep = grid.read(request.files[0], request.overrides)
    chosen = sweep.only(args.only)
    check_options(args)
    if args.dry_run:
        standings = {run.name: standing(run) for run in sweep.runs}
        show_grid(sweep, {run.name: standings[run.name] for run in chosen})
        return DONE
    return start(_array(sweep, chosen), args) if args.slurm else go(sweep, chosen)


def _array(sweep: Sweep, chosen: Sequence[GridRun]) -> Batch:
    """The runs that are not done, as an array of jobs. Their files are written. Raises UsageError if all are done."""
    left = [run for run in chosen if standing(run).kind != "done"]
    if not left:
        raise UsageError("--slurm: all runs are done already; leave it out to write the tables")
    device, *others = sorted({run.config.run.device for run in left})
    if others:
        values = ", ".join(map(repr, (device, *others)))
        raise UsageError(f"run.device={values}: all jobs of an array get the same GPUs; submit them apart, with --only")
    with _alone(sweep.folder):
        plans = [plan_of(sweep, run) for run in left]
    jobs = min(sweep.settings.jobs, len(left))
    return Batch(sweep.folder.name, sweep.settings.nproc, 1, [], device, plans, jobs)


def go(sweep: Sweep, chosen: Sequence[GridRun]) -> int:
    """Train the ``chosen`` runs of a sweep that are not done, and write its tables. The exit code."""
    standings = {run.name: standing(run) for run in sweep.runs}
    with _alone(sweep.folder) as lock:
        return _train_all(sweep, chosen, standings, lock)


def results(sweep: Sweep, failed: Mapping[str, str] | None = None) -> list[table.TableRow]:
    """The rows of the sweep's table as its folder has them; ``failed``: why runs are not done."""
    why = failed or {}
    return table.rows(sweep, [table.outcome(run, standing(run), why.get(run.name, "")) for run in sweep.runs])


def _train_all(sweep: Sweep, chosen: Sequence[GridRun], standings: dict[str, Standing], lock: int) -> int:
    """Train what is not done, ``sweep.jobs`` runs at a time; the table is written after each."""
    failed: dict[str, str] = {}
    left = [run for run in chosen if standings[run.name].kind != "done"]
    if done := len(chosen) - len(left):
        print(f"{done} of {len(chosen)} runs are done already", flush=True)
    table.write_columns(sweep, results(sweep, failed))
    shown = (Bars if on_terminal() else Lines)(done, len(chosen))
    try:
        for run, ended in _trained(sweep, left, standings, shown, lock):
            if not ended.done:
                failed[run.name] = ended.reason
            rows = results(sweep, failed)
            shown.ended(run, ended, next(o.result for row in rows for o in row.outcomes if o.run is run))
            _write(sweep, rows)
    except Interrupted:
        log.warning("the same command resumes the sweep")
        raise
    finally:
        shown.close()
        rows = results(sweep, failed)
        _write(sweep, rows)
        table.write_columns(sweep, rows)  # again: which metric the runs have is known by now
        with SideWork()("curves.png"):
            table.draw(sweep, rows)
    print(f"\n{table.markdown(sweep, rows)}\n{sweep.folder}: {', '.join(FILES)}, curves.png, curves.pdf")
    print(f"TensorBoard: fedddp tensorboard {sweep.folder}", flush=True)
    return FAILED if failed else DONE


def _trained(
    sweep: Sweep, left: Sequence[GridRun], standings: Mapping[str, Standing], shown: Lines, lock: int
) -> Iterator[tuple[GridRun, Ended]]:
    """Train the runs ``left``, several at a time, and yield each as it ends. Raises Interrupted, with all stopped."""
    jobs = min(sweep.settings.jobs, max(1, len(left)))
    workers: SimpleQueue[Worker] = SimpleQueue()
    for number in range(jobs):
        workers.put(Worker(number, jobs, sweep.settings.nproc, lock))

    def one(run: GridRun) -> Ended:
        interrupt.check()
        worker = workers.get()
        try:
            shown.started(run, standings[run.name].round)
            return train(sweep, run, worker, partial(shown.round, run))
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(jobs, thread_name_prefix="sweep") as pool:
        runs = {pool.submit(one, run): run for run in left}
        try:
            for future in as_completed(runs):
                yield runs[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write(sweep: Sweep, rows: Sequence[table.TableRow]) -> None:
    """Write `FILES` to the sweep's folder, each replaced as a whole."""
    for name, content in FILES.items():
        hidden = sweep.folder / f".{name}"
        hidden.write_text(content(sweep, rows), encoding="utf-8")
        hidden.replace(sweep.folder / name)


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the sweep's folder, and yield the lock's descriptor.

    A run inherits the lock: one that outlives a killed sweep is not trained twice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise UsageError(f"sweep.dir={str(folder.parent)!r}: cannot be written to ({error.strerror})") from None
    os.set_inheritable(lock.fileno(), True)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder}: a sweep, or a run that it left, is at work there; wait for it, or stop it"
            ) from None
        yield lock.fileno()
