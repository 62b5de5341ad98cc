"""Runs that are disturbed at random and resumed until they are done, and what must hold of each at its end.

    python -m benchmarks.chaos [--runs 100] [--seed 0] [--kinds plain exact ...] [--keep] [--out FOLDER]

A run is ``fedddp launch`` with two or three ranks. It is disturbed two or three times: a rank is killed, stopped, hung
or ended at a named point of a round (FEDDDP_FAULT), or the launcher or a rank gets a signal at a moment drawn at
random, also while it starts. After each time the same command resumes it; the last start is left alone. Then:

    wrong     the model differs from that of a run that nothing disturbed (SHA-256)
    hung      a start did not end within the limit
    lost      a round is not in metrics.jsonl once, or the run is not done
    holes     a round is not in TensorBoard's files once, where these are written
    orphans   a process of the run is left
    files     a temporary file is left in the run folder or in the temporary folder
    untruth   the state of the run folder is "running" or unknown after a start has ended
    reused    the account of privacy has fewer releases than rounds
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedddp.checkpoints.run_folder import read_lines, state_of
from fedddp.comm.faults import VARIABLE
from fedddp.errors import DONE

from . import machine

ROUNDS, TIMEOUT, LIMIT = 8, 30.0, 300.0
"""Rounds of a run, its run.timeout, and the seconds that a start may take, imports of its ranks included."""
SMALL = [
    *("--run.threads=1", "--run.device=cpu", f"--run.rounds={ROUNDS}", f"--run.timeout={TIMEOUT:g}", "--run.name=r"),
    *("--data.name=synthetic", "--data.args={num_train=480, num_test=60}", "--model.name=mlp", "--model.hidden=16"),
    *("--data.partition.num_clients=6", "--checkpoint.every=1", "--checkpoint.keep=2", "--run.resume=auto"),
]
KINDS: dict[str, tuple[int, list[str]]] = {
    "plain": (2, []),
    "exact": (3, ["--aggregation.sum=exact"]),
    "scaffold": (2, ["--algorithm.name=scaffold"]),
    "secure": (3, ["--privacy.secure_aggregation.enabled=true"]),
    "private": (2, ["--privacy.level=client", "--privacy.noise_multiplier=1", "--privacy.randomness=seeded"]),
    "tensorboard": (2, ["--telemetry.tensorboard=true"]),
}
"""The number of ranks and the keys of each kind of run."""
POINTS = ("train", "before aggregate", "after aggregate", "evaluate", "before evaluate")
ENDS = ("kill", "exit", "term", "hup", "raise", "abort")
STILL = ("stop", "hang")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
MARK = "FEDDDP_CHAOS"


@dataclass
class Disturbance:
    """A fault at a point of a round, or a signal to the launcher or a rank after so many seconds or rounds."""

    fault: str = ""
    signal: str = ""
    whom: str = "launcher"
    after: float = 0.0
    rounds: int = 0

    def __str__(self) -> str:
        when = f"after round {self.rounds}" if self.rounds else f"after {self.after:.1f} s"
        return self.fault or f"{self.signal} to {self.whom} {when}"

    @classmethod
    def drawn(cls, rng: random.Random, ranks: int, done: int) -> Disturbance:
        """Draw one for a start that continues after ``done`` rounds."""
        rank, round = rng.randrange(ranks), min(ROUNDS, done + rng.randint(1, 3))
        kind = rng.choices(("ends", "still", "checkpoint", "signal", "start"), (6, 1, 1, 4, 3))[0]
        if kind == "checkpoint":
            return cls(fault=f"kill@round={round},rank=0,point=checkpoint")
        if kind in ("ends", "still"):
            how = rng.choice(ENDS if kind == "ends" else STILL)
            return cls(fault=f"{how}@round={round},rank={rank},point={rng.choice(POINTS)}")
        name, whom = rng.choice(SIGNALS).name, rng.choice(("launcher", f"rank {rank}"))
        if kind == "signal":
            return cls(signal=name, whom=whom, rounds=round)
        return cls(signal=name, whom=whom, after=rng.uniform(0.1, 8.0))


@dataclass
class Outcome:
    """What became of one run."""

    kind: str
    disturbances: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Run:
    """One run in a folder of its own. ``words``: its keys."""

    def __init__(self, folder: Path, ranks: int, words: Sequence[str]) -> None:
        self.folder, self.ranks, self.mark = folder, ranks, f"{os.getpid()}-{folder.name}"
        (folder / "tmp").mkdir(parents=True)
        self.killed = False  # whether a launcher was
        self.words = [sys.executable, "-m", "fedddp", "launch", "-n", str(ranks), *SMALL, *words]
        self.words += [
            f"--run.dir={folder}",
            *([] if "tensorboard" in " ".join(words) else ["--telemetry.tensorboard=off"]),
        ]

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder / "r"

    @property
    def rounds(self) -> list[int]:
        """The rounds in metrics.jsonl."""
        return [int(line.get("round", -1)) for line in read_lines(self.path / "metrics.jsonl")]

    def start(self, disturbance: Disturbance | None = None) -> int | None:
        """Start it, disturb it, and wait for its end: the exit code, or None if it hung."""
        extra = {MARK: self.mark, "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        extra |= {VARIABLE: disturbance.fault} if disturbance and disturbance.fault else {}
        with (self.folder / "output.txt").open("a") as output:
            output.write(f"-- {disturbance or 'undisturbed'}\n")
            output.flush()
            launcher = subprocess.Popen(
                self.words, env={**os.environ, **extra}, stdout=output, stderr=output, start_new_session=True
            )
        if disturbance and disturbance.signal:
            self._disturb(launcher, disturbance)
        with suppress(subprocess.TimeoutExpired):
            return launcher.wait(LIMIT)
        return None

    def _disturb(self, launcher: subprocess.Popen, disturbance: Disturbance) -> None:
        began = time.monotonic()
        while launcher.poll() is None and time.monotonic() - began < LIMIT:
            due = len(self.rounds) >= disturbance.rounds if disturbance.rounds else True
            if due and time.monotonic() - began >= disturbance.after:
                break
            time.sleep(0.01)
        ranks = {env["RANK"]: pid for pid, env in started_with(**{MARK: self.mark}).items() if "RANK" in env}
        pid = launcher.pid if disturbance.whom == "launcher" else ranks.get(disturbance.whom.split()[1], launcher.pid)
        self.killed |= pid == launcher.pid and disturbance.signal == "SIGKILL"
        with suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[disturbance.signal])

    def processes(self) -> list[int]:
        """Those that were started for it and live."""
        return list(started_with(**{MARK: self.mark}))

    def left(self) -> list[int]:
        """The processes that do not end by themselves within 12 s; they are killed then."""
        deadline = time.monotonic() + 12
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def sha(self) -> str:
        """The SHA-256 of the model it ended with, empty if it has not ended."""
        with suppress(OSError, ValueError):
            return str(json.loads((self.path / "summary.json").read_text())["model_sha256"])
        return ""

    def drawn_rounds(self) -> list[int] | None:
        """The steps of a card of TensorBoard that every round has; None if none were written."""
        if not (self.path / "tensorboard").is_dir():
            return None
        events = EventAccumulator(str(self.path / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        tag = next((tag for tag in events.Tags()["scalars"] if "loss train" in tag), None)
        return [event.step for event in events.Scalars(tag)] if tag else []


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty once it has gone (or is a zombie)."""
    with suppress(OSError):
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return {}


def started_with(**variables: str) -> dict[int, dict[str, str]]:
    """The processes that were started with these variables and live, and the environment of each."""
    found = {pid: environment(pid) for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))}
    return {pid: env for pid, env in found.items() if variables.items() <= env.items()}


def disturbed(run: Run, kind: str, sha: str, rng: random.Random) -> Outcome:
    """Disturb a run two or three times, resume it, and look for what is wrong with it."""
    outcome, began = Outcome(kind), time.monotonic()
    for _ in range(rng.randint(2, 3)):
        drawn = Disturbance.drawn(rng, run.ranks, len(run.rounds))
        outcome.disturbances.append(str(drawn))
        _one(run, outcome, drawn)
    if _one(run, outcome, None) != DONE:
        outcome.problems.append("lost: the last start did not end as done")
    outcome.problems += checked(run, sha)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _one(run: Run, outcome: Outcome, drawn: Disturbance | None) -> int | None:
    code = run.start(drawn)
    outcome.codes.append(-1000 if code is None else code)
    if code is None:
        outcome.problems.append(f"hung: {drawn}")
    if left := run.left():
        outcome.problems.append(f"orphans: {len(left)} after {drawn}")
    if run.path.is_dir() and (state := state_of(run.path)[0]) in ("running", "unknown"):
        outcome.problems.append(f"untruth: {state} after {drawn}")
    return code


def checked(run: Run, sha: str) -> list[str]:
    """What is wrong with a run that ended."""
    found, wanted = [], list(range(1, ROUNDS + 1))
    if run.sha() != sha:
        found.append("wrong: another model")
    if run.rounds != wanted:
        found.append(f"lost: rounds {run.rounds}")
    if (drawn := run.drawn_rounds()) not in (None, wanted):
        found.append(f"holes: rounds {drawn} in TensorBoard")
    hidden = [path.name for path in run.path.rglob(".*") if path.name != ".lock"]
    kept = (
        "torchinductor",
        *(["fedddp-launch"] if run.killed else []),
    )  # by torch's import; by who could not remove it
    if litter := hidden + [path.name for path in (run.folder / "tmp").iterdir() if not path.name.startswith(kept)]:
        found.append(f"files: {litter[:5]}")
    spent = read_lines(run.path / "privacy.jsonl")
    if spent and len(spent) < ROUNDS:
        found.append(f"reused: {len(spent)} releases of {ROUNDS} rounds")
    return found


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """A line a kind, and every problem."""
    table = Table(title="disturbed runs")
    for column in ("kind", "runs", "disturbances", "problems", "s a run"):
        table.add_column(column, justify="right")
    for kind in dict.fromkeys(o.kind for o in outcomes):
        of = [o for o in outcomes if o.kind == kind]
        problems = Counter(p.partition(":")[0] for o in of for p in o.problems)
        told = ", ".join(f"{n} {name}" for name, n in problems.items()) or "0"
        seconds = sum(o.seconds for o in of) / len(of)
        table.add_row(kind, str(len(of)), str(sum(len(o.disturbances) for o in of)), told, f"{seconds:.0f}")
    console.print(table)
    for number, outcome in enumerate(outcomes):
        for problem in outcome.problems:
            console.print(f"run {number} ({outcome.kind}; {'; '.join(outcome.disturbances)}): {problem}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Disturb the runs that the command line asks for; 1 if one of them has a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", action="store_true", help="keep the folders of runs with problems")
    parser.add_argument("--out", type=Path, default=machine.RECORDS)
    args = parser.parse_args(argv)
    described, console = machine.describe([args.out]), Console()
    root = Path(tempfile.mkdtemp(prefix="fedddp-chaos-"))
    shas: dict[str, str] = {}
    for kind in args.kinds:
        reference = Run(root / f"reference-{kind}", *KINDS[kind])
        if reference.start() != DONE:
            raise SystemExit(f"{kind}: the undisturbed run failed:\n{(reference.folder / 'output.txt').read_text()}")
        shas[kind] = reference.sha()
    outcomes = []
    for number in track(range(args.runs), "disturbing", console=console):
        kind, rng = args.kinds[number % len(args.kinds)], random.Random(args.seed * 100_000 + number)
        run = Run(root / f"run-{number}", *KINDS[kind])
        outcomes.append(disturbed(run, kind, shas[kind], rng))
        if not (args.keep and outcomes[-1].problems):
            shutil.rmtree(run.folder, ignore_errors=True)
        console.print(f"{number} {kind}: {outcomes[-1].problems or 'right'} {outcomes[-1].codes}", markup=False)
    show(outcomes, console)
    path = machine.keep(args.out, "chaos", {"machine": described, "runs": [asdict(o) for o in outcomes]})
    console.print(f"kept in {path}")
    if not args.keep:
        shutil.rmtree(root, ignore_errors=True)
    return int(any(o.problems for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
