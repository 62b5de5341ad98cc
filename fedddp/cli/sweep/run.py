"""One run of a sweep: how far it is, and training it in processes of its own.

A run is the program itself on a file of its own, in a process of its own, so that whatever happens to it (a crash, no
memory) happens to it alone. It has a session of its own: Ctrl-C at the terminal reaches the sweep only, which then asks
it to stop.
"""

import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ...checkpoints.run_folder import locate, read_json
from ...checkpoints.saved import differences
from ...comm import interrupt
from ...config import UsageError, flatten, read_toml, to_dict
from .grid import GridRun, Sweep
from .worker import Worker

PATIENCE = 40.0  # seconds that a run has to stop in: its ranks are given 30
LOST = re.compile(r"rank \d+ was ended by \w+")
"""What fedddp launch says of a rank that a signal ended; the others are then stopped, and report that alone."""

TELLING = re.compile(r"^(fedddp(\[rank \d+\])?: |(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b)")


@dataclass(frozen=True)
class Standing:
    """How far a run is; ``round`` is the last one that was finished."""

    kind: Literal["new", "begun", "done"]
    folder: Path
    round: int = 0


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: whether the run is done, and if it is not, why."""

    done: bool
    reason: str = ""


def standing(run: GridRun) -> Standing:
    """What an earlier sweep left of a run. Raises UsageError for a run of another configuration: it is not mixed in."""
    folder = locate(Path(run.config.run.dir), run.name, "auto").path
    if not (folder / "config.toml").is_file():
        return Standing("new", folder)
    saved, now = flatten(read_toml(folder / "config.toml")), flatten(to_dict(run.config))
    if now.get("privacy.noise_multiplier") is None:  # filled in from the data, for target_epsilon
        saved.pop("privacy.noise_multiplier", None)
    changed = differences(saved, now)
    if changed:
        raise UsageError(
            f"run {run.name}: {folder} was made with another configuration: {'; '.join(changed)}. "
            "Give the sweep another sweep.name, or remove that folder"
        )
    done = (folder / "summary.json").is_file() and all(saved.get(key) == now.get(key) for key in _asked(saved, now))
    return Standing("done" if done else "begun", folder, int(read_json(folder / "status.json").get("round", 0)))


def _asked(*configs: dict[str, Any]) -> set[str]:
    """Keys that may change between attempts, and that say how far a run goes and what is measured on the way."""
    keys = {key for config in configs for key in config}
    return {key for key in keys if key in ("run.rounds", "privacy.target_epsilon") or key.startswith("evaluate.")}


def train(sweep: Sweep, run: GridRun, worker: Worker, on_round: Callable[[int], None]) -> Ended:
    """Train a run to its end, from where it stands. Raises Interrupted, with it stopped.

    ``on_round`` is called with the last finished round, again and again.

    What the run says goes to ``logs/<name>.txt``, what it was asked for stands in ``plan/<name>.toml``.
    """
    plan, log = plan_of(sweep, run), sweep.folder / "logs" / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    began = log.stat().st_size
    code = _supervised(worker, plan, log, lambda: on_round(standing(run).round))
    found = standing(run)
    if code == 0 and found.kind == "done":
        return Ended(True)
    with log.open(encoding="utf-8", errors="replace") as said:
        said.seek(began)
        return Ended(False, _reason(read_json(found.folder / "status.json"), said.read(), code))


def plan_of(sweep: Sweep, run: GridRun) -> Path:
    """Write what a run was asked for as a file of its own, and return its path."""
    plan = sweep.folder / "plan" / f"{run.name}.toml"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_text(tomli_w.dumps(dict(run.table)), encoding="utf-8")
    return plan


def _supervised(worker: Worker, plan: Path, log: Path, look: Callable[[], None]) -> int | None:
    """Let a worker train a run to its end; its exit code. If this process is asked to stop, so is the run."""
    process = worker.start(plan, log)
    try:
        while process.poll() is None:
            interrupt.check()
            look()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return process.returncode


def _reason(status: dict[str, Any], said: str, code: int | None) -> str:
    """Why a run is not done, in a line: what its status says, or the last line of its output that names an error."""
    if status.get("state") == "failed":
        return str(status.get("error", "failed"))
    if lost := LOST.search(said):
        return f"{lost[0]}; the same command goes on"
    if status.get("state") == "interrupted":
        return f"stopped from outside ({status.get('reason')}); the same command goes on"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.match(line)]
    last = (telling or lines or [""])[-1]
    died = f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return last.removeprefix("fedddp: ") if telling else f"{died}: {last}" if last else died
