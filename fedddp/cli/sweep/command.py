"""Run a grid of experiments and compare them: algorithms x partitions x seeds, or any other keys.

The same command resumes a sweep where it was stopped, within a run too, and leaves out what is done.
"""

import fcntl
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...comm.interrupt import Interrupted
from ...config import UsageError
from ...errors import DONE, FAILED
from ...telemetry import SideWork
from ..outcome import asked
from . import grid, hparams, picture, table
from .grid import Run, Sweep
from .progress import show_grid, teller
from .run import Standing, standing, train

log = logging.getLogger("fedddp")


def run(args: Namespace) -> int:
    """Run the sweep that ``args`` name; see `fedddp.cli.options.sweep`. The exit code: 1 if a run failed."""
    request = asked(args)
    if len(request.files) != 1:
        raise UsageError("give one SWEEP.toml; files that its runs share go into sweep.files")
    sweep = grid.read(request.files[0], request.overrides)
    standings = {run.name: standing(run) for run in sweep.runs}
    chosen = sweep.only(args.only)
    if args.dry_run:
        show_grid(sweep, {run.name: standings[run.name] for run in chosen})
        return DONE
    with _alone(sweep.folder):
        return _train_all(sweep, chosen, standings)


def _train_all(sweep: Sweep, chosen: Sequence[Run], standings: dict[str, Standing]) -> int:
    """Train what is not done, one run after the other; the table is written after each."""
    failed: dict[str, str] = {}
    left = [run for run in chosen if standings[run.name].kind != "done"]
    if done := len(chosen) - len(left):
        print(f"{done} of {len(chosen)} runs are done already", flush=True)
    hparams.write(sweep)
    telling = teller(done, len(chosen))
    try:
        for run in left:
            telling.started(run, standings[run.name].round)
            ended = train(sweep, run, telling.round)
            if not ended.done:
                failed[run.name] = ended.reason
            rows = _rows(sweep, failed)
            accuracy = next(o.accuracy for row in rows for o in row.outcomes if o.run is run)
            telling.ended(run, ended, accuracy)
            table.write(sweep, rows)
    except Interrupted:
        log.warning("the same command resumes the sweep")
        raise
    finally:
        telling.close()
        rows = _rows(sweep, failed)
        table.write(sweep, rows)
        with SideWork()("curves.png"):
            picture.curves(sweep, rows).savefig(sweep.folder / "curves.png", dpi=120)
    print(f"\n{table.markdown(sweep, rows)}\n{sweep.folder}: table.md, table.csv, curves.png")
    print(f"TensorBoard: tensorboard --logdir {sweep.folder}", flush=True)
    return FAILED if failed else DONE


def _rows(sweep: Sweep, failed: dict[str, str]) -> list[table.Row]:
    return table.rows(sweep, [table.outcome(run, standing(run), failed.get(run.name, "")) for run in sweep.runs])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder. A run inherits the lock: one that outlives a killed sweep is not trained twice."""
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
        yield
