"""What a round costs besides training: the one all_reduce, and all that is not.

    python -m benchmarks.empty_round [--ranks 2] [--rounds 200] [--model mlp] [--set section.key=value ...]

Every rank is one client that owns no example, so that it makes no local step, and its update counts for nothing; the
loop is otherwise what it always is, metrics.jsonl included. The bare collective is torch's own all_reduce of a buffer
of the same length, in the same processes, in turn with the rounds. Nothing is evaluated. The second line is a run's
default: TensorBoard, and a checkpoint every round.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedddp.comm import Comm, Place
from fedddp.data import Partition
from fedddp.federation import federate
from fedddp.setup.experiment import Experiment
from fedddp.setup.load import load_data, prepare

from . import machine
from .contenders.fedddp import configuration, experiment
from .ranks import hand_back, on_ranks
from .workloads import Workload

TURN = 10  # rounds in a row: what one leaves to be done in the background costs the next, as in a run
EXTRAS = {
    "metrics.jsonl only": (),
    "with TensorBoard and checkpoints": ("--telemetry.tensorboard=true", "--checkpoint.every=1"),
}


def rounds(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What each rank does, in turn: some rounds without and with the extras, as many bare collectives. Seconds.

    The first round of a turn is left out: it has no round before it whose end it could be counted from.
    """
    place, count = Place.from_env(), args.rounds
    workload = Workload(name="empty", model=args.model)
    settings = workload.settings(ranks=args.ranks, threads=1, device="cpu", repeats=2 * count, examples=None)
    comm: Comm | None = None
    signature: dict[str, str] = {}
    runs: dict[str, Experiment] = {}
    for name, words in EXTRAS.items():
        more = [f"--{override}" for override in args.set]
        config = configuration(settings, [*words, *more, f"--run.dir={folder}", f"--run.name={name}"], place)
        dataset, _ = load_data(config)
        nobodys = Partition.dealt(np.zeros(0, dtype=np.int64), np.zeros(args.ranks, dtype=np.int64))
        prepared = prepare(config, place, dataset, nobodys)
        signature = signature or prepared.signature  # ranks compare one a process group: the first run's
        runs[name] = experiment(replace(prepared, signature=signature), comm)
        comm = runs[name].federation.comm
    assert comm is not None
    servers = {name: run.server for name, run in runs.items()}
    m, length = args.ranks, len(next(iter(servers.values())).w)
    buffer = torch.zeros(length + 1 + 3 * m + 2 * args.ranks)  # the layout: docs/architecture.md, "A round"
    found: dict[str, Any] = {name: {"round": [], "all_reduce": []} for name in runs}
    for _ in range(-(-count // TURN) + 1):
        for name, run in runs.items():
            found[name]["all_reduce"] += [bare(buffer, comm) for _ in range(TURN)]
            servers[name] = federate(run.federation.until(servers[name].round + TURN + 1), servers[name])
            found[name]["round"] += [m["seconds"] for m in run.federation.telemetry.history[-TURN:]]
    for run in runs.values():
        run.federation.telemetry.close(None)
        failures = sum(m["failures"] for m in run.federation.telemetry.history)
        assert not failures  # a client that raises costs less than one that takes part
    comm.close()
    return {"floats": len(buffer), "seconds": found}


def bare(buffer: torch.Tensor, comm: Comm) -> float:
    """Seconds of the collective alone, which all ranks begin together."""
    comm.barrier("begin together")
    assert comm._group is not None
    began = time.perf_counter()
    comm._group.all_reduce(buffer).wait()  # without Comm's heartbeat, ledger and polling
    return time.perf_counter() - began


def show(found: dict[str, Any], console: Console) -> None:
    """Medians on rank 0, the first turn left out."""
    table = Table(title=f"a round without local steps, {found['floats']:,} floats summed; ms, median (quartiles)")
    for column in ("", "whole round", "bare all_reduce", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in found["seconds"].items():
        whole, collective = ([1e3 * s for s in seconds[key][TURN:]] for key in ("round", "all_reduce"))
        cells = []
        for values in (whole, collective):
            low, _, high = quantiles(values, n=4)
            cells.append(f"{median(values):.2f} ({low:.2f} to {high:.2f})")
        table.add_row(name, *cells, f"{median(whole) - median(collective):.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.empty_round", description="a round's fixed cost")
    parser.add_argument("--ranks", type=int, default=2, help="at least 2 [2]")
    parser.add_argument("--rounds", type=int, default=200, help="rounds that count [200]")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # set for the ranks that this program starts
    args = parser.parse_args()
    if args.ranks < 2:
        parser.error("--ranks: one rank alone sums nothing; use 2 or more")
    if args.work:
        hand_back(rounds(args, args.work), args.work)
        return
    console = Console(width=None if sys.stdout.isatty() else 110)
    described = machine.describe((args.out,))
    found = on_ranks(args.ranks, "benchmarks.empty_round")
    show(found, console)
    console.print(f"[dim]{machine.in_words(described)}")
    console.print(f"kept in {machine.keep(Path(args.out), 'empty_round', {'machine': described, **found})}")


if __name__ == "__main__":
    main()
