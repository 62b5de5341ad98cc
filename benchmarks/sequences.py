"""Small clients of token sequences: batched training beside a plain PyTorch loop on such batches, in one run.

    python -m benchmarks.sequences [--models lstm lstm-64 gru-64 gpt-64 gpt-128 gpt-64-tied] [--clients 20]

Next-token prediction on random sequences of 80 of 97 token ids, B=4, clients of 16 sequences. Both take turns; a ratio
is of the CPU seconds of neighbouring turns, which a busy machine changes least. GFLOP/s count 6 operations for each
parameter that acts on a position, forwards and backwards. The last line is what products of large matrices reach.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedddp.clients import LocalTrainingSpec, choose
from fedddp.data import ClientData, Examples, Normalizer, Partition, Work
from fedddp.data.inputs import Shape
from fedddp.models.sequence import GPT, LSTM
from fedddp.optim import SGD
from fedddp.setup.experiment import keep_freed_memory
from fedddp.tasks.next_token import NextToken

from . import machine

VOCABULARY, LENGTH, BATCH, STEPS = 97, 80, 4, 4
SHAPE = Shape((LENGTH,), VOCABULARY, per_position=True)


class GRU(nn.Module):
    """The LSTM's model with GRU layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(VOCABULARY, 8), nn.GRU(8, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(x))[0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: LSTM().build(SHAPE, VOCABULARY),
    "lstm-64": lambda: LSTM(hidden=64).build(SHAPE, VOCABULARY),
    "gru-64": lambda: GRU(64),
    "gpt-64": lambda: GPT(width=64, layers=2).build(SHAPE, VOCABULARY),
    "gpt-128": lambda: GPT().build(SHAPE, VOCABULARY),
    "gpt-64-tied": lambda: GPT(width=64, layers=2, tied=True).build(SHAPE, VOCABULARY),
}


def loop(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every client from the same weights, ``x [clients, STEPS, BATCH, LENGTH]``."""
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for inputs, labels in zip(x, y, strict=True):
        module.load_state_dict(start)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for batch, target in zip(inputs, labels, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(module(batch).flatten(0, 1), target.flatten()).backward()
            optimizer.step()
    module.load_state_dict(start)


def measure(make: Callable[[], nn.Module], clients: int, repeats: int) -> tuple[str, int, list[tuple[float, float]]]:
    """How clients train, their parameters that act on a position, and CPU seconds (loop, batched) turn by turn."""
    stream = torch.Generator().manual_seed(0)
    shape = clients * STEPS * BATCH, LENGTH
    x, y = (torch.randint(VOCABULARY, shape, generator=stream) for _ in range(2))
    partition = Partition.dealt(np.arange(len(x)), np.full(clients, STEPS * BATCH))
    data = ClientData(Examples(x, y), partition, Normalizer((0.0,), (1.0,), torch.float32))
    task, spec = NextToken(make, VOCABULARY), LocalTrainingSpec(SGD(lr=0.1), Work(batch_size=BATCH))
    trainer, how = choose(task, data, Examples(x[:8], y[:8]), spec, at_most=clients)
    start, module = task.initial_params(0), task.model(0)
    acting = sum(p.numel() for name, p in module.named_parameters() if not name.startswith(("embedding", "positions")))
    found = []
    for repeat in range(repeats + 1):
        began = time.process_time()
        loop(module, x.view(clients, STEPS, BATCH, LENGTH), y.view(clients, STEPS, BATCH, LENGTH))
        between = time.process_time()
        for first in range(0, clients, trainer.width):
            trainer.on(range(first, min(first + trainer.width, clients)), repeat).train(start)
        found.append((between - began, time.process_time() - between))
    return how, acting, found[1:]  # the first warms up


def peak(size: int = 1024) -> float:
    """Operations per CPU second of products of matrices, the best of five."""
    a = torch.randn(size, size)
    seconds = []
    for _ in range(6):
        began = time.process_time()
        torch.mm(a, a)
        seconds.append(time.process_time() - began)
    return 2 * size**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description="batched clients of sequences")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count [5]")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    described = machine.describe((args.out,))
    table = Table("model", "loop, ms a client's step", "batched", "gain (range)", "loop, GFLOP/s", "batched")
    found = {}
    for model in args.models:
        how, acting, turns = measure(MODELS[model], args.clients, args.repeats)
        found[model] = {"how": how, "parameters": acting, "seconds": turns}
        each = [median(column) / (args.clients * STEPS) for column in zip(*turns, strict=True)]
        gains = [before / after for before, after in turns]
        rates = [f"{6 * acting * BATCH * LENGTH / seconds / 1e9:.0f}" for seconds in each]
        gain = f"{median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
        table.add_row(model, f"{each[0] * 1e3:.2f}", f"{each[1] * 1e3:.2f}", gain, *rates)
    reached = peak()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for model, row in found.items():
        console.print(f"{model}: {row['how']}")
    console.print(f"products of matrices: {reached / 1e9:.0f} GFLOP/s")
    console.print(f"[dim]{machine.in_words(described)}")
    record = {"machine": described, "clients": args.clients, "peak_flops": reached, "models": found}
    console.print(f"kept in {machine.keep(Path(args.out), 'sequences', record)}")


if __name__ == "__main__":
    main()
