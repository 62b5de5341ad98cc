"""How a round of many small clients grows: with the cohort, and with the number of ranks.

    python -m benchmarks.scaling [--ranks 2] [--rounds 5] [--data.root=DIR] [--set section.key=value ...]

The job is w2 of benchmarks/workloads.py. Cohorts of 50, 100, 200 and 400 clients take turns in one process group;
their time should double with them, and the memory of a rank should stay. 1, 2 and 4 ranks are process groups of their
own that take turns; their rounds of 100 clients are shown by phase.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fedddp.comm import Comm, Place
from fedddp.sampling import UniformSampler
from fedddp.setup.load import prepare

from . import machine
from .contender import Contender, high_water
from .contenders.fedddp import advance, configuration, experiment
from .ranks import hand_back, on_ranks
from .run import measure
from .workloads import WORKLOADS, write_settings

COHORTS = (50, 100, 200, 400)
RANKS = (1, 2, 4)
PHASES = {"train": "seconds_train", "aggregate": "seconds_aggregate", "evaluate": "seconds_evaluate"}
WORKLOAD = replace(WORKLOADS["w2"], evaluate=True)


def by_cohort(settings: Mapping[str, Any], words: Sequence[str]) -> dict[int, dict[str, list]]:
    """What each rank does: rounds of every cohort size in turn. The first repeat, of growing cohorts, warms up."""
    place = Place.from_env()
    prepared = prepare(configuration(settings, [*words, "--evaluate.every=0"], place), place)
    run = experiment(prepared)
    f, server = run.federation, run.server
    found: dict[int, dict[str, list]] = {m: {"train": [], "total": [], "peak_mib": []} for m in COHORTS}
    for repeat in range(settings["rounds"]):
        for m in COHORTS if repeat % 2 == 0 else COHORTS[::-1]:
            sampler = UniformSampler(prepared.data.num_clients, m, prepared.config.run.seed)
            server, seconds = advance(replace(f, sampler=sampler), server)
            found[m]["train"].append(f.telemetry.history[-1]["seconds_train"])
            found[m]["total"].append(seconds)
            found[m]["peak_mib"].append(_everybodys_peak(f.comm))
    f.telemetry.close(None)
    f.comm.close()
    return found


def _everybodys_peak(comm: Comm) -> list[float]:
    peaks = torch.zeros(comm.world_size, dtype=torch.float64)
    peaks[comm.rank] = high_water(os.getpid())
    return comm.all_reduce(peaks, "peak memory").tolist()


def ranks(args: argparse.Namespace, work: Path, console: Console) -> dict[int, dict[str, list[float]]]:
    """Seconds of every phase by number of ranks, a value a repeat, the warm-up left out."""
    contenders = []
    for count in RANKS:
        folder = work / f"{count}-ranks"
        folder.mkdir()
        write_settings(folder, _settings(args, count))
        contenders.append(Contender(f"ranks={count}", "fedddp", Path(sys.executable), folder, _words(args), 1))
    measure(contenders, repeats=args.rounds, starts=1, say=console.log)
    found = {}
    for count, contender in zip(RANKS, contenders, strict=True):
        if contender.outcome.reason:
            console.print(f"{contender.name}: [red]{contender.outcome.reason}")
            continue
        (metrics,) = (work / f"{count}-ranks" / "runs").glob("*/metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()][1:]
        found[count] = {phase: [line[key] for line in lines] for phase, key in PHASES.items()}
        found[count]["total"] = [record["total"] for record in contender.outcome.rounds]
    return found


def show(by_m: Mapping[str, Mapping[str, list]], by_ranks: Mapping[int, Mapping[str, list]], console: Console) -> None:
    """Both tables, medians."""
    table = Table(title="w2 by cohort, one process group", caption="peak: after the first round of that cohort")
    for column in ("clients a round", "train s", "round s", "train / half the cohort (range)", "peak MiB a rank"):
        table.add_column(column, justify="right")
    for m, seconds in by_m.items():
        half = by_m.get(str(int(m) // 2))
        growth = [a / b for a, b in zip(seconds["train"][1:], half["train"][1:], strict=True)] if half else []
        table.add_row(
            m,
            *(f"{median(seconds[key][1:]):.3f}" for key in ("train", "total")),
            f"{median(growth):.2f} ({min(growth):.2f} to {max(growth):.2f})" if growth else "",
            f"{max(seconds['peak_mib'][0]):.0f}",
        )
    console.print(table)
    table = Table(title="w2 by ranks, 100 clients a round and the test set")
    for column in ("ranks", *PHASES, "round s"):
        table.add_column(column, justify="right")
    for count, seconds in by_ranks.items():
        table.add_row(str(count), *(f"{median(seconds[key]):.3f}" for key in (*PHASES, "total")))
    console.print(table)


def picture(by_m: Mapping[str, Mapping[str, list]], by_ranks: Mapping[int, Mapping[str, list]]) -> Figure:
    """Training time over the cohort, beside a straight line through 0; phases over ranks."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [int(m) for m in by_m]
    medians = [median(seconds["train"][1:]) for seconds in by_m.values()]
    left.plot([0, sizes[-1]], [0, medians[-1]], color="grey", linestyle="--", linewidth=1, label="in proportion")
    left.plot(sizes, medians, marker="o", label="training")
    left.set(xlabel="clients a round", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    below = [0.0] * len(by_ranks)
    for phase in PHASES:
        heights = [median(seconds[phase]) for seconds in by_ranks.values()]
        right.bar([str(count) for count in by_ranks], heights, bottom=below, label=phase)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    right.set(xlabel="ranks", ylabel="seconds a round")
    for axes in (left, right):
        axes.legend()
        axes.grid(axis="y", alpha=0.3)
    return figure


def _settings(args: argparse.Namespace, count: int) -> dict[str, Any]:
    return WORKLOAD.settings(ranks=count, threads=1, device="cpu", repeats=args.rounds, examples=None)


def _words(args: argparse.Namespace) -> list[str]:
    data = ["--data.name=mnist", f"--data.root={args.root}"] if args.root else ["--data.name=mnist-mini"]
    return [*data, *(f"--{override}" for override in args.set)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="time over cohort and ranks")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the group that tries the cohorts [2]")
    parser.add_argument("--rounds", type=int, default=5, help="repeats that count [5]")
    parser.add_argument("--data.root", dest="root", help="MNIST in torchvision's layout; without: embedded digits")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # set for the ranks that this program starts
    args = parser.parse_args()
    if args.work:
        words = [*_words(args), f"--run.dir={args.work}/runs"]
        hand_back(by_cohort(_settings(args, args.ranks), words), args.work)
        return
    console = Console(width=None if sys.stdout.isatty() else 110, log_path=False)
    described = machine.describe((args.root, args.out))
    by_m = on_ranks(args.ranks, "benchmarks.scaling")
    with tempfile.TemporaryDirectory(prefix="fedddp-") as folder:
        by_ranks = ranks(args, Path(folder), console)
    show(by_m, by_ranks, console)
    console.print(f"[dim]{machine.in_words(described)}")
    record = {"machine": described, "by_cohort": by_m, "by_ranks": by_ranks}
    console.print(f"kept in {machine.keep(Path(args.out), 'scaling', record, picture(by_m, by_ranks))}")


if __name__ == "__main__":
    main()
