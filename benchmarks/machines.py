"""Two machines and what happens between them: seconds until each went on or ended, and what it said last.

    python -m benchmarks.machines [--ways launch,torchrun,party] [--cases "cut for good",...]

The machines are network namespaces joined by `benchmarks.wire`, each with a folder of its own. Each case is a run of
two ranks, one on each machine, started in one of three ways, with run.timeout=20: ``fedddp launch --nnodes=2``,
``launch/multi_node.sh`` (torchrun's agents) and ``launch/party.sh`` (no agent). What happens comes after three rounds;
seconds count from there, or from the start where nothing happens. Needs root, iproute2 and /dev/net/tun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import machine, wire
from .wire import Cable, address

TIMEOUT, JOINING, PATIENCE = 20, 60, 150.0  # seconds: run.timeout, --join-timeout, and how long a machine is watched
WORDS = [
    *("--data.name=synthetic", "--data.args={num_train=2000, num_test=200}", "--model.name=mlp", "--model.hidden=32"),
    *("--client.local_steps=100", "--client.batch_size=32", "--run.device=cpu", "--run.threads=1", "--run.name=trial"),
    *("--telemetry.tensorboard=false", "--privacy.trust_network=true", f"--run.timeout={TIMEOUT}"),
]
PORT = 29611
LAUNCH = machine.ROOT / "launch"


@dataclass
class Side:
    """A machine's program: its folder, where it writes what it prints, and when it was found to have ended."""

    process: subprocess.Popen[bytes]
    printed: Path
    ended: float = 0.0

    def last(self) -> str:
        """The last line, or a failed rank's own last line: the launcher's comes after it."""
        lines = [line for line in self.printed.read_text(errors="replace").splitlines() if line.strip()]
        own = [line for line in lines if line.startswith(("fedddp[rank", "fedddp: aggregate")) and self.process.poll()]
        return re.sub(r"\S*/bin/fedddp", "fedddp", (own or lines or [""])[-1])  # no paths of this machine


@dataclass
class Pair:
    """Two machines, started in one way.

    Attributes:
        way: one of `WAYS`.
        cable: what joins them.
        folder: of both; the folder of machine 0 has the run's.
        hints: whether addresses, interfaces and the number of a machine are given.
    """

    way: str
    cable: Cable
    folder: Path
    hints: bool = False

    def start(self, number: int, *words: str, **variables: str) -> Side:
        """Start the program of machine ``number``."""
        here = self.folder / f"machine-{number}"
        here.mkdir(exist_ok=True)
        command, own = WAYS[self.way](number)
        if self.hints:
            interface = f"fd{os.getpid()}-{number}"[-15:]
            own |= {"GLOO_SOCKET_IFNAME": interface, "IS_HOST": str(int(number == 0))}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **own, **variables}
        printed = here / f"printed-{time.monotonic_ns()}.txt"
        with printed.open("wb") as out:
            whole = wire.within(number, [*command, *WORDS, *words])
            process = subprocess.Popen(whole, cwd=here, env=env, stdout=out, stderr=out, start_new_session=True)
        return Side(process, printed)

    @property
    def run(self) -> Path:
        """The newest run folder."""
        return max((self.folder / "machine-0" / "runs").glob("*"), key=lambda p: p.stat().st_mtime, default=self.folder)

    def rounds(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def await_rounds(self, count: int, sides: Sequence[Side]) -> None:
        """Wait until ``count`` rounds are written, or a program has ended."""
        limit = time.monotonic() + PATIENCE
        while self.rounds() < count and time.monotonic() < limit and all(s.process.poll() is None for s in sides):
            time.sleep(0.05)

    def outcome(self, sides: Sequence[Side], since: float) -> dict[str, Any]:
        """Wait until both programs have ended, or for `PATIENCE`: when each did, with what, and what the files say."""
        while time.monotonic() < since + PATIENCE and any(not side.ended for side in sides):
            for side in sides:
                if not side.ended and side.process.poll() is not None:
                    side.ended = time.monotonic()
            time.sleep(0.05)
        status = self.run / "status.json"
        return {
            "state": json.loads(status.read_text())["state"] if status.exists() else "no run",
            "rounds": self.rounds(),
            "folders": len(list((self.folder / "machine-0" / "runs").glob("*"))),
            "machines": [
                {
                    "seconds": round(side.ended - since, 1) if side.ended else None,
                    "exit": side.process.poll(),
                    "last": side.last(),
                    "printed": len(side.printed.read_text(errors="replace").splitlines()),
                }
                for side in sides
            ],
        }


def _launch(number: int) -> tuple[list[str], dict[str, str]]:
    where = ["--nnodes=2", f"--master={address(0)}:{PORT}"]
    return [sys.executable, "-m", "fedddp", "launch", "-n", "1", *where, f"--join-timeout={JOINING}"], {}


def _torchrun(number: int) -> tuple[list[str], dict[str, str]]:
    return [str(LAUNCH / "multi_node.sh")], {
        "NNODES": "2",
        "NPROC": "1",
        "JOIN_TIMEOUT": str(JOINING),
        "RDZV_ENDPOINT": f"{address(0)}:{PORT}",
        "VENV": sys.prefix,
    }


def _party(number: int) -> tuple[list[str], dict[str, str]]:
    place = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": address(0), "MASTER_PORT": str(PORT)}
    return [str(LAUNCH / "party.sh")], {**place, "VENV": sys.prefix}


WAYS: dict[str, Callable[[int], tuple[list[str], dict[str, str]]]] = {
    "launch": _launch,
    "torchrun": _torchrun,
    "party": _party,
}


# -- what happens ---------------------------------------------------------------------------------------------------


def undisturbed(pair: Pair, *words: str, **cable: float) -> dict[str, Any]:
    """A run over a cable of some delay, loss and rate, from start to end."""
    vars(pair.cable).update(cable)
    since = time.monotonic()
    return pair.outcome([pair.start(number, "--run.rounds=10", *words) for number in (0, 1)], since)


@contextmanager
def training(pair: Pair, rounds: int, **variables: str) -> Iterator[list[Side]]:
    """Both machines, three rounds after the start."""
    sides = [pair.start(number, f"--run.rounds={rounds}", **variables) for number in (0, 1)]
    pair.await_rounds(3, sides)
    yield sides


def cut(pair: Pair, seconds: float = 0.0) -> dict[str, Any]:
    """The cable is cut, for good or for some seconds."""
    with training(pair, 20 if seconds else 100000) as sides:
        since, pair.cable.loss = time.monotonic(), 1.0
        if seconds:
            time.sleep(seconds)
            pair.cable.loss = 0.0
        return pair.outcome(sides, since)


def killed(pair: Pair, number: int) -> dict[str, Any]:
    """All processes of a machine are killed."""
    with training(pair, 100000) as sides:
        since = time.monotonic()
        wire.kill(number)
        return pair.outcome(sides, since)


def killed_and_back(pair: Pair, number: int) -> dict[str, Any]:
    """All processes of a machine are killed, and its command is given again 5 s later; agents may restart."""
    with training(pair, 20, PET_MAX_RESTARTS="2") as sides:
        since = time.monotonic()
        wire.kill(number)
        time.sleep(5)
        sides[number] = pair.start(number, "--run.rounds=20", PET_MAX_RESTARTS="2")
        return pair.outcome(sides, since)


def alone(pair: Pair, number: int) -> dict[str, Any]:
    """Only one of the machines is started."""
    since = time.monotonic()
    return pair.outcome([pair.start(number, "--run.rounds=10")], since)


CASES: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "start": undisturbed,
    "only machine 0 starts": lambda pair: alone(pair, 0),
    "only machine 1 starts": lambda pair: alone(pair, 1),
    "cut for 10 s": lambda pair: cut(pair, 10.0),
    "cut for good": cut,
    "machine 0 killed": lambda pair: killed(pair, 0),
    "machine 1 killed": lambda pair: killed(pair, 1),
    "machine 0 killed, started again": lambda pair: killed_and_back(pair, 0),
    "machine 1 killed, started again": lambda pair: killed_and_back(pair, 1),
    "100 ms delay, 1% loss": lambda pair: undisturbed(pair, delay=0.1, loss=0.01),
    "round trip of 300 ms": lambda pair: undisturbed(pair, delay=0.15),
    "50 Mbit/s": lambda pair: undisturbed(pair, "--model.hidden=512", rate=50.0),
}


def measured(way: str, case: str, *, hints: bool = False) -> dict[str, Any]:
    """What came of a case."""
    with tempfile.TemporaryDirectory(prefix="fedddp-") as folder, wire.joined() as cable:
        try:
            found = CASES[case](Pair(way, cable, Path(folder), hints))
        finally:
            for number in (0, 1):
                wire.kill(number)
    return {"way": way, "case": case, **found}


def show(found: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="two machines", show_lines=True)
    for column in ("case", "started by", "run", "machine", "seconds", "exit", "last line"):
        table.add_column(column)
    for row in found:
        for number, side in enumerate(row["machines"]):
            first = number == 0
            table.add_row(
                row["case"] if first else "",
                row["way"] if first else "",
                f"{row['state']}, {row['rounds']} rounds" if first else "",
                str(number),
                f"over {PATIENCE:g}" if side["seconds"] is None else f"{side['seconds']:g}",
                "" if side["exit"] is None else str(side["exit"]),
                escape(side["last"]),
            )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machines", description="faults between two machines")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"ways to start [{','.join(WAYS)}]")
    parser.add_argument("--cases", default=",".join(CASES).replace(", ", "; "), help="cases, with ; for a comma [all]")
    parser.add_argument("--hints", action="store_true", help="give IS_HOST and GLOO_SOCKET_IFNAME")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    args = parser.parse_args()
    if why := wire.missing():
        parser.error(why)
    console, described = Console(width=None if sys.stdout.isatty() else 170), machine.describe((args.out,))
    found: list[dict[str, Any]] = []
    try:
        for case in args.cases.split(","):
            for way in args.ways.split(","):
                found.append(measured(way, case.replace("; ", ", "), hints=args.hints))
                show(found[-1:], console)
    finally:
        console.print(f"[dim]{machine.in_words(described)}")
        console.print(f"kept in {machine.keep(Path(args.out), 'machines', {'machine': described, 'found': found})}")


if __name__ == "__main__":
    main()
