"""Run a grid of experiments and compare them: algorithms x partitions x seeds, or any other keys.

    fedddp sweep SWEEP.toml [--dry-run] [--only=PATTERN ...] [--section.key=value ...]

The same command goes on where it was stopped, within a run too, and leaves out what is done. What is left in
<sweep.dir>/<sweep.name>/: a folder a run, table.md, table.csv, curves.png, and logs/ of what each run said.

  --dry-run            show the runs and how far each is, and exit
  --only=PATTERN       runs whose name or label matches (fedavg, "seed=[01]", iid,shards); given again: both must match
  --section.key=value  on top of all runs (those of fedddp.train), or of the [sweep] section:
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...comm import interrupt
from ...comm.interrupt import Interrupted
from ...config import UsageError
from ...telemetry import SideWork, lasting_output, log_to_stderr
from . import grid, hparams, picture, table
from .grid import Run, Settings, Sweep
from .progress import show_grid, teller
from .run import Standing, standing, train

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, interrupt.EXIT_CODE

log = logging.getLogger("fedddp")


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code: 0 done, 1 a run failed, 2 bad usage, 75 interrupted."""
    log_to_stderr(0, 1)
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or {"-h", "--help"} & {*words}:
        print(f"{__doc__}{_settings()}")
        return DONE if words else USAGE
    try:
        with interrupt.handled():
            return _run(words)
    except UsageError as error:
        log.error("%s", error)
        return USAGE
    except Interrupted as request:
        log.warning("%s: stopped; the same command goes on", request)
        return INTERRUPTED


def _run(words: Sequence[str]) -> int:
    only = [word.removeprefix("--only=") for word in words if word.startswith("--only=")]
    rest = [word for word in words if word != "--dry-run" and not word.startswith("--only=")]
    path = next((word for word in rest if not word.startswith("--") and word.endswith(".toml")), None)
    if path is None:
        raise UsageError(f"{' '.join(words)}: names no SWEEP.toml; see --help")
    rest.remove(path)
    sweep = grid.read(Path(path), rest)
    standings = {run.name: standing(run) for run in sweep.runs}
    chosen = sweep.only(only)
    if "--dry-run" in words:
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


def _settings() -> str:
    rows = ((f"--sweep.{name}", field) for name, field in Settings.model_fields.items())
    return "\n".join(f"    {key:24} {field.description} [{field.default or 'none'}]" for key, field in rows)


if __name__ == "__main__":
    sys.exit(main())
