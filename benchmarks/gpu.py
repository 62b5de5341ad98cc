"""All that needs a GPU, in one go: the tests, the workloads, and how far from the card's limits fedddp is.

    python -m benchmarks.gpu [--data.root=DIR] [--peers .peers] [--workloads w1,w2] [--rounds n]

Runs `pytest tests/gpu`; then each workload on the GPU in float32, all contenders on one rank in turns, and fedddp on
two ranks on the card; measures the card's limits by a large copy and a large product of matrices. The table
comes last; every figure goes to benchmarks/records/. ``--device cpu`` runs the same program with few images, to see
that it works.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedddp.config import UsageError

from . import limits, machine, run
from .contenders.models import MODELS

IMAGE = (1, 28, 28)
COLUMNS = ("ranks", "train s", "round s", "clients/s", "of the limit", "fedddp is faster")


def main() -> int:
    """Run the program; the exit code: 1 if a test or fedddp failed, 2 without a GPU."""
    parser = _parser()
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"benchmarks.gpu: torch {torch.__version__} sees no GPU on this machine", file=sys.stderr)
        return 2
    if args.device == "cpu":
        args.examples, args.rounds = args.examples or 1000, args.rounds or 1
    described = machine.describe((args.root, args.peers, args.out))
    tests, passed = tested()
    console, device = run.a_console(), torch.device(args.device)
    best = limits.measured(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the contenders' turn
    try:
        found = {name: _measured(name, args, best, console) for name in args.workloads.split(",")}
    except UsageError as error:
        parser.error(str(error))
    record = {"machine": described, "tests": tests, "limits": asdict(best), "workloads": found}
    kept = machine.keep(Path(args.out), "gpu", record)
    _show(found, console)
    console.print(f"the card: {best.bytes / 1e9:,.0f} GB/s in a copy, {best.flops / 1e12:,.2f} TFLOP/s in float32")
    console.print(f"tests/gpu: {tests}\n{machine.in_words(described)}\nkept in {kept}")
    return 0 if passed and all(rows for rows in found.values()) else 1


def tested() -> tuple[str, bool]:
    """pytest's last line, and whether no test failed."""
    command = [sys.executable, "-m", "pytest", "tests/gpu"]
    lines = [""]
    with subprocess.Popen(command, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip() or lines[-1])
    return lines[-1], process.returncode == 0


def _measured(name: str, args: argparse.Namespace, best: limits.Limits, console: Console) -> list[dict[str, Any]]:
    """The workload's row of each contender; empty if fedddp did not run."""
    words = ["--workload", name, "--device", args.device, "--peers", args.peers, "--out", args.out]
    words += [f"--data.root={args.root}"] if args.root else []
    words += ["--rounds", str(args.rounds)] if args.rounds else []
    words += ["--examples", str(args.examples)] if args.examples else []
    alone = run.compare(run.arguments(*words, "--ranks", "1", "--against", args.against), console)
    both = run.compare(run.arguments(*words, "--ranks", "2"), console)
    return [*rows(alone, best), *rows(both, best)] if alone else []


def rows(record: Mapping[str, Any] | None, best: limits.Limits) -> Iterator[dict[str, Any]]:
    """The medians of each contender, in comparison with the limits and with the first contender."""
    if record is None:
        return
    job, (low, high) = record["workload"], record["examples_each"]
    work = limits.of_training(
        MODELS[job["model"]](),
        IMAGE,
        clients=job["cohort"],
        examples=round((low + high) / 2),
        epochs=job["epochs"],
        batch_size=job["batch_size"],
    )
    first = next(iter(record["contenders"].values()))["rounds"]
    for name, outcome in record["contenders"].items():
        rounds = outcome["rounds"]
        row: dict[str, Any] = {"name": name, "ranks": job["ranks"], "reason": outcome["reason"]}
        if rounds:
            row |= {measure: statistics.median(r[measure] for r in rounds) for measure in ("train", "total")}
            row["clients/s"] = statistics.median(r["clients"] / r["total"] for r in rounds)
            row["of the limit"], row["bound"] = best.seconds(work) / row["train"], best.bound(work)
            row["faster"] = statistics.median(b["total"] / a["total"] for a, b in zip(first, rounds, strict=False))
        yield row


def _show(found: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="medians; fedddp is faster: by round, in the same repeat")
    table.add_column("contender")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, contenders in found.items():
        for row in contenders:
            cells = [f"{row['train']:.4f}", f"{row['total']:.4f}", f"{row['clients/s']:,.0f}"] if "train" in row else []
            if cells:
                cells += [f"{row['of the limit']:.1%} ({row['bound']})"]
                cells += [] if row["name"] == "fedddp" else [f"{row['faster']:.2f} times"]
            table.add_row(f"{name} {row['name']}", str(row["ranks"]), *cells or ["not available"])
        if not contenders:
            table.add_row(f"{name} fedddp", "", "failed")
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--data.root", dest="root", help="MNIST in torchvision's layout; without: embedded digits")
    add("--peers", default=".peers", help="folder of the peers' environments [.peers]")
    add("--workloads", default="w1,w2", help="comma-separated names of benchmarks.run [w1,w2]")
    add("--against", default="sequential,pytorch,pfl", help="contenders of benchmarks.run [sequential,pytorch,pfl]")
    add("--rounds", type=int, help="repeats that count [the workload's]")
    add("--examples", type=int, help="use the first so many training images only")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--out", default=str(machine.RECORDS), help="folder for the records [benchmarks/records]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
