"""What the exchange of one large vector takes: seconds, bytes, and memory of a rank beyond its model and its update.

    python -m benchmarks.exchange [--numbers 87500000] [--ranks 2,4] [--clients 1,4] [--rounds 3]

A round of the main loop without local training: the sum is opened, each client's update is added, the sum goes over the
ranks, the server moves. What a rank has before it does not count: the server's model w and the update of one client
(clients of a rank train one after the other, so that the next update takes the place of the last). Memory is the
process's peak over all rounds, in multiples of the vector; by phase that of the first round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedddp.aggregation import DriftTally, FastSum, Pipeline
from fedddp.algorithms import FedAvg
from fedddp.comm import Comm, Place
from fedddp.flat import FlatSpec
from fedddp.setup.experiment import keep_freed_memory
from fedddp.types import Cohort, LocalResult, ServerState, Update

from . import machine
from .contender import high_water
from .ranks import hand_back, on_ranks

PHASES = ("open", "add", "sum over ranks", "server")
PEAK = Path("/proc/self/clear_refs")
"""Writing 5 to it resets the process's peak."""


def resident() -> float:
    """Return the MiB that this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rounds(args: argparse.Namespace) -> dict[str, Any]:
    """What each rank does: rounds, of which rank 0's seconds, bytes and memory are kept."""
    keep_freed_memory()
    torch.set_num_threads(1)
    comm = Comm.connect(Place.from_env(), torch.device("cpu"))
    n, vector = args.numbers, 4 * args.numbers / 2**20
    spec = FlatSpec(("w",), ((n,),), n, n, torch.float32)
    algorithm, population = FedAvg(), args.clients * comm.world_size
    server = algorithm.init_server(torch.zeros(n), spec)
    sizes = torch.full((population,), 10)
    pipeline = Pipeline(algorithm.vectors(spec), FastSum(torch.float32, "cpu"), sizes, comm, tally=DriftTally)
    delta = torch.full((1, n), 1e-3)
    own = range(comm.rank, population, comm.world_size)
    found: dict[str, list[float]] = {"seconds": [], "bytes": []}
    peaks: list[float] = []
    comm.barrier("begin together")
    PEAK.write_text("5")
    base = resident()
    for t in range(args.rounds + 1):  # the first one warms up
        comm.barrier("begin together")
        sent, began = comm.bytes_sent, time.perf_counter()
        cohort = Cohort(t, tuple(range(population)), population)
        server = _round(pipeline, algorithm, server, cohort, own, delta, peaks)
        found["seconds"].append(time.perf_counter() - began)
        found["bytes"].append(comm.bytes_sent - sent)
    right = torch.full((n,), (args.rounds + 1) * 1e-3)
    assert torch.allclose(server.w, right, rtol=1e-4)
    comm.close()
    phases = dict(zip(PHASES, ((peak - base) / vector for peak in peaks), strict=False))
    return {name: values[1:] for name, values in found.items()} | phases | {"peak": (peaks[-1] - base) / vector}


def _round(
    pipeline: Pipeline,
    algorithm: FedAvg,
    server: ServerState,
    cohort: Cohort,
    own: range,
    delta: torch.Tensor,
    peaks: list[float],
) -> ServerState:
    def passed() -> None:
        peaks.append(high_water(os.getpid()))

    inbox = pipeline.open(cohort, server)
    passed()
    one = torch.ones(1, dtype=torch.float64)
    for k in own:
        result = LocalResult(server.w, delta, torch.ones(1, dtype=torch.long), one, one)
        inbox.add((k,), Update({"delta": delta}, 10 * one), result)
    passed()
    mean, _ = inbox.mean()
    passed()
    server = algorithm.server_update(server, mean, cohort)
    passed()
    return server


def show(found: dict[str, dict[str, Any]], numbers: int, console: Console) -> None:
    """Print medians over rounds, of rank 0."""
    table = Table(title=f"a vector of {4e-6 * numbers:g} MB; memory in vectors, beyond w and one update")
    for column in ("ranks, clients a rank", "seconds", "MB sent", *PHASES, "peak"):
        table.add_column(column, justify="right")
    for name, seen in found.items():
        cells = [f"{median(seen['seconds']):.2f}", f"{median(seen['bytes']) / 1e6:.1f}"]
        table.add_row(name, *cells, *(f"{seen[key]:.2f}" for key in (*PHASES, "peak")))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description="the exchange of a large vector")
    parser.add_argument("--numbers", type=int, default=87_500_000, help="length of the vector, float32 [87500000]")
    parser.add_argument("--ranks", default="2,4", help="[2,4]")
    parser.add_argument("--clients", default="1,4", help="clients of a rank [1,4]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count [3]")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # set for the ranks that this program starts
    args, words = parser.parse_args(), sys.argv[1:]
    if args.work:
        args.clients = int(args.clients)
        hand_back(rounds(args), args.work)
        return
    console, described = Console(width=None if sys.stdout.isatty() else 120), machine.describe((args.out,))
    found = {}
    for ranks in map(int, args.ranks.split(",")):
        for clients in map(int, args.clients.split(",")):
            sys.argv[1:] = [*words, f"--clients={clients}"]
            found[f"{ranks}, {clients}"] = on_ranks(ranks, "benchmarks.exchange")
    show(found, args.numbers, console)
    console.print(f"[dim]{machine.in_words(described)}")
    console.print(f"kept in {machine.keep(Path(args.out), 'exchange', {'machine': described, 'found': found})}")


if __name__ == "__main__":
    main()
