"""What each compression sends and what it costs, against the plain all_reduce, in one run.

    python -m benchmarks.compression [--ranks 2] [--clients 10] [--model cnn] [--rounds 5]

Every rank hosts as many of the clients, whose updates are drawn numbers of the model's length. The methods take turns
in the same processes, round by round. Encoding is what happens to a client's update as it comes (its compression, or
its part in the sum), the rest of a round what happens once all are there: the collectives, and what is left to encode
and to decode. CPU seconds are those of all threads of a rank, which a busy machine changes least. Loopback is faster
than any network: "pays below" is the rate of a link at which the bytes saved take as long as the CPU seconds spent.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedddp.aggregation import FastSum, Pipeline
from fedddp.aggregation.compression import Compression, Int8, NoCompression, PowerSGD, RandomK, Setting, TopK
from fedddp.clients import ClientStore
from fedddp.comm import Comm, Place
from fedddp.flat import FlatSpec
from fedddp.models import MODELS
from fedddp.rng import generator
from fedddp.sampling import home_rank
from fedddp.types import Cohort, LocalResult, ServerState, Update

from . import machine
from .ranks import hand_back, on_ranks

METHODS: dict[str, Compression] = {
    "none": NoCompression(),
    "int8": Int8(),
    "random_k, share 0.1": RandomK(share=0.1),
    "top_k, share 0.01": TopK(share=0.01),
    "top_k, share 0.01, float32": TopK(share=0.01, values="float32"),
    "power_sgd, rank 4": PowerSGD(rank=4),
}
EXAMPLES = 600  # a client's, its weight


class Contender:
    """One method's pipeline on this rank."""

    def __init__(self, method: Compression, spec: FlatSpec, clients: int, comm: Comm) -> None:
        layout, self._clients, self._comm, self._spec = {"delta": spec.dim}, clients, comm, spec
        self._memory = ClientStore()
        setting = Setting(layout, spec, 0, comm.world_size, self._memory, lambda dtype: FastSum(dtype, "cpu"))
        self._pipeline = Pipeline(layout, method.sum(setting), torch.full((clients,), EXAMPLES), comm)

    def round(self, t: int, updates: dict[int, torch.Tensor]) -> tuple[float, float, float, int]:
        """Seconds of encoding, seconds of the rest, CPU seconds of both, bytes sent."""
        cohort = Cohort(t, tuple(range(self._clients)), self._clients)
        self._comm.barrier("begin together")
        sent, began, cpu = self._comm.bytes_sent, time.perf_counter(), time.process_time()
        inbox = self._pipeline.open(cohort, ServerState(torch.zeros(self._spec.dim), self._spec))
        for k, delta in updates.items():
            figures = LocalResult(delta, delta, torch.ones(1), torch.zeros(1), torch.zeros(1))
            inbox.add([k], Update({"delta": delta}, torch.tensor([EXAMPLES])), figures)
        encoded = time.perf_counter()
        inbox.mean()
        self._memory.commit()
        seconds = encoded - began, time.perf_counter() - encoded, time.process_time() - cpu
        return *seconds, self._comm.bytes_sent - sent


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What each rank does: one round that warms up, then those that count."""
    torch.set_num_threads(1)
    place = Place.from_env()
    comm = Comm.connect(place, torch.device("cpu"))
    spec = FlatSpec.of(MODELS[args.model]().build((1, 28, 28), 10))
    mine = [k for k in range(args.clients) if home_rank(k, comm.world_size) == comm.rank]
    contenders = {name: Contender(method, spec, args.clients, comm) for name, method in METHODS.items()}
    found: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in contenders}
    for t in range(args.rounds + 1):
        updates = {k: torch.randn(1, spec.dim, generator=generator(k, "update", t)) / 100 for k in mine}
        for name, contender in contenders.items():
            found[name].append(contender.round(t, updates))
    comm.close()
    medians = {name: [median(column) for column in zip(*rows[1:], strict=True)] for name, rows in found.items()}
    return {"dim": spec.dim, "ranks": comm.world_size, "clients": args.clients, "medians": medians}


def show(found: dict[str, Any], console: Console) -> None:
    """Medians of rank 0."""
    ranks, clients, dim = found["ranks"], found["clients"], found["dim"]
    table = Table(title=f"{dim:,} parameters, {clients} clients on {ranks} ranks; a round, medians of rank 0")
    columns = ("bytes a rank", "of none's", "encode, ms", "the rest, ms", "CPU, ms", "of none's", "pays below")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    plain = found["medians"]["none"]
    for name, (encode, rest, cpu, sent) in found["medians"].items():
        more, saved = cpu - plain[2], plain[3] - sent
        pays = f"{8e-6 * saved / more:,.0f} Mbit/s" if saved > 0 and more > 0 else "any" if saved > 0 else ""
        seconds = [f"{1e3 * s:.1f}" for s in (encode, rest, cpu)]
        table.add_row(name, f"{sent:,.0f}", f"{sent / plain[3]:.2%}", *seconds, f"{cpu / plain[2]:.2f}", pays)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description="bytes and seconds")
    parser.add_argument("--ranks", type=int, default=2, help="at least 2 [2]")
    parser.add_argument("--clients", type=int, default=10, help="of a round [10]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count [5]")
    parser.add_argument("--model", default="cnn", choices=list(MODELS))
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # set for the ranks that this program starts
    args = parser.parse_args()
    if args.ranks < 2:
        parser.error("--ranks: one rank alone sends nothing; use 2 or more")
    if args.work:
        hand_back(measure(args), args.work)
        return
    console = Console(width=None if sys.stdout.isatty() else 130)
    found = on_ranks(args.ranks, "benchmarks.compression")
    show(found, console)
    described = machine.describe((args.out,))
    console.print(f"[dim]{machine.in_words(described)}")
    console.print(f"kept in {machine.keep(Path(args.out), 'compression', {'machine': described, **found})}")


if __name__ == "__main__":
    main()
