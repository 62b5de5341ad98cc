"""Clipped per-example gradients: all of a batch together, against one backward pass for each example.

    python -m benchmarks.dpsgd [--models cnn mlp] [--examples 128] [--clients 1] [--repeats 7] [--device cpu]

What is measured is what DP-SGD does before the noise: the gradient of each example, its norm, the sum of the clipped
ones. "loop" is the plain way of writing that: an eager forward and backward pass an example, the clipped gradient added
to a sum. The others are what the trainer uses: `torch.func` for any model, and without per-example gradients for models
of linear and convolution layers. All take turns in one process, and have to give the same sum.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedddp.clients.private.ghost import GhostExamples
from fedddp.clients.private.oracle import ClippedSums, VmappedExamples
from fedddp.models import MODELS
from fedddp.tasks import Task

from . import machine

SHAPE, CLASSES, CLIP = (1, 28, 28), 10, 1.0
WAYS = {"torch.func": VmappedExamples, "ghost": GhostExamples}
Batch = tuple[Tensor, Tensor]


def loop(task: Task, device: torch.device, x: Tensor, y: Tensor) -> Tensor:
    """The sum [K, P] of clipped gradients, one example of one client after the other; ``x [K, B, ...]``."""
    sums = []
    for inputs, labels in zip(x, y, strict=True):
        model = task.model(0).to(device)
        params = list(model.parameters())
        total = [torch.zeros_like(p) for p in params]
        for b in range(len(labels)):
            loss = task.loss(model(inputs[b : b + 1]), labels[b : b + 1]).sum()
            grads = torch.autograd.grad(loss, params)
            norm = torch.stack(torch._foreach_norm(list(grads))).norm()
            torch._foreach_add_(total, torch._foreach_mul(list(grads), CLIP / norm.clamp(min=CLIP)))
        sums.append(torch.cat([t.flatten() for t in total]))
    return torch.stack(sums)


def together(oracle: ClippedSums, w: Tensor, task: Task, x: Tensor, y: Tensor) -> Tensor:
    """The same by ``oracle``."""
    g = torch.empty_like(w)
    oracle.collect(w, g)
    oracle.step(task, x, y, torch.ones_like(y, dtype=torch.bool), CLIP)
    return g


def measure(model: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Examples a second of each way, one figure a repeat; the first turn, a warm-up, is left out."""
    device = torch.device(args.device)
    task = Task(lambda: MODELS[model]().build(SHAPE, CLASSES), CLASSES)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(args.clients, args.examples, *SHAPE, generator=stream).to(device)
    y = torch.randint(CLASSES, (args.clients, args.examples), generator=stream).to(device)
    w = task.initial_params(0).to(device).repeat(args.clients, 1)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loop": partial(loop, task, device)}
    for name, build in WAYS.items():
        ways[name] = partial(together, build(task.model(0), device), w, task)
    expected = ways["loop"](x, y)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats + 1):
        for name, way in ways.items():
            _wait(device)
            began = time.perf_counter()
            sums = way(x, y)
            _wait(device)
            found[name].append(y.numel() / (time.perf_counter() - began))
            assert torch.allclose(sums, expected, rtol=1e-3, atol=1e-4), f"{name} gives another sum than the loop"
    return {name: figures[1:] for name, figures in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dpsgd", description="clipped per-example gradients")
    parser.add_argument("--models", nargs="+", default=["cnn", "mlp"], choices=list(MODELS))
    parser.add_argument("--examples", type=int, default=128, help="of each client in a batch [128]")
    parser.add_argument("--clients", type=int, default=1, help="at once [1]")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count [7]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    described = machine.describe((args.out,))
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"{args.clients} client(s) of {args.examples} examples; median, ratios turn by turn (range)")
    for column in ("", "", "examples/s", "times the loop"):
        table.add_column(column, justify="right" if column else "left")
    found = {model: measure(model, args) for model in args.models}
    for model, ways in found.items():
        for name, figures in ways.items():
            ratios = [a / b for a, b in zip(figures, ways["loop"], strict=True)]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            table.add_row(model, name, f"{statistics.median(figures):,.0f}", "" if name == "loop" else spread)
    console.print(table)
    console.print(f"[dim]{machine.in_words(described)}")
    record = {"machine": described, "settings": vars(args) | {"out": None}, "examples_per_second": found}
    console.print(f"kept in {machine.keep(machine.Path(args.out), 'dpsgd', record)}")


if __name__ == "__main__":
    main()
