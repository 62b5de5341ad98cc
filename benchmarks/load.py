"""What a long run takes as it goes on: memory, open files and threads of its ranks, and the bytes of its folder.

    python -m benchmarks.load [--ranks 2] [--rounds 300] [--clients 200] [--samples 6] [--out FOLDER] [KEYS ...]

A run is looked at when the same number of rounds has passed again and again. What grows with rounds shows in the
columns: metrics.jsonl, clients.jsonl and TensorBoard's files are to grow by the same bytes a round, the rest to stay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedddp.checkpoints.run_folder import read_lines

from . import machine
from .chaos import MARK, started_with

KEYS = [
    *("--run.name=r", "--run.device=cpu", "--run.threads=1", "--model.name=mlp", "--model.hidden=64"),
    *("--data.name=synthetic", "--telemetry.tensorboard=true"),
]


@dataclass
class Sample:
    """What a run takes after some rounds; of ranks, the most that one of them has."""

    rounds: int
    seconds: float
    memory_mb: float
    descriptors: int
    threads: int
    kilobytes: dict[str, float] = field(default_factory=dict)


def ranks_of(mark: str) -> list[Path]:
    """The folders in /proc of a run's ranks."""
    return [Path(f"/proc/{pid}") for pid, env in started_with(**{MARK: mark}).items() if "RANK" in env]


def sampled(run: Path, mark: str, began: float) -> Sample:
    """Look at a run."""
    ranks = ranks_of(mark)
    status = [dict(line.split(":", 1) for line in (rank / "status").read_text().splitlines()) for rank in ranks]
    parts: dict[str, float] = dict.fromkeys(
        ("checkpoints", "tensorboard", "metrics.jsonl", "clients.jsonl", "others"), 0.0
    )
    for path in (Path(folder, name) for folder, _, names in os.walk(run) for name in names):
        with suppress(FileNotFoundError):  # a checkpoint that is replaced meanwhile
            part = next((name for name in parts if name in path.parts), "others")
            parts[part] += path.stat().st_size / 1000
    return Sample(
        rounds=len(read_lines(run / "metrics.jsonl")),
        seconds=round(time.monotonic() - began, 1),
        memory_mb=max(int(of["VmRSS"].split()[0]) for of in status) / 1000,
        descriptors=max(len(os.listdir(rank / "fd")) for rank in ranks),
        threads=max(int(of["Threads"]) for of in status),
        kilobytes={name: round(kb, 1) for name, kb in parts.items()},
    )


def samples(words: list[str], folder: Path, rounds: int, number: int) -> Iterator[Sample]:
    """Train a run, and look at it after each ``number``-th part of its rounds, the last one just before its end."""
    mark, run, began = f"load-{os.getpid()}", folder / "r", time.monotonic()
    due = [max(1, rounds * part // number - (part == number)) for part in range(1, number + 1)]
    with (folder / "output.txt").open("w") as out:
        process = subprocess.Popen(words, env={**os.environ, MARK: mark}, stdout=out, stderr=out)
    for wanted in due:
        while len(read_lines(run / "metrics.jsonl")) < wanted:
            if process.poll() is not None:
                raise SystemExit((folder / "output.txt").read_text())
            time.sleep(0.2)
        yield sampled(run, mark, began)
    if process.wait():
        raise SystemExit((folder / "output.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("ranks", 2), ("rounds", 300), ("clients", 200), ("samples", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=machine.RECORDS)
    args, keys = parser.parse_known_args()
    described, console = machine.describe([args.out]), Console()
    folder = Path(tempfile.mkdtemp(prefix="fedddp-load-"))
    words = [sys.executable, "-m", "fedddp", "launch", "-n", str(args.ranks), *KEYS, f"--run.rounds={args.rounds}"]
    words += [f"--data.partition.num_clients={args.clients}", f"--run.dir={folder}", *keys]
    words += [f"--data.args={{num_train={20 * args.clients}, num_test=200}}"]
    try:
        found = list(samples(words, folder, args.rounds, args.samples))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(title=f"{args.ranks} ranks, {args.clients} clients")
    for column in ("rounds", "s", "MB a rank", "files open", "threads", *(f"kB {name}" for name in found[0].kilobytes)):
        table.add_column(column, justify="right", overflow="fold")
    for at in found:
        of = (at.rounds, at.seconds, f"{at.memory_mb:.1f}", at.descriptors, at.threads, *at.kilobytes.values())
        table.add_row(*map(str, of))
    console.print(table)
    path = machine.keep(args.out, "load", {"machine": described, "samples": [asdict(at) for at in found]})
    console.print(f"kept in {path}")


if __name__ == "__main__":
    main()
