"""What it is worth to sequential training on a CPU that images lie with their channels innermost, in one run.

    python -m benchmarks.layout [--models vgg resnet cnn lenet] [--batch-size 50] [--repeats 9]

Two trainers of one client take turns; a ratio is of the CPU seconds of neighbouring turns, which a busy machine changes
least. Images of MNIST's size, drawn at random; the VGG is of a quarter of the width, both deep networks have GroupNorm.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedddp.clients import LocalTrainingSpec, SequentialTrainer
from fedddp.data import DATASETS, ClientData, Partition, Work
from fedddp.models import MODELS
from fedddp.optim import SGD
from fedddp.tasks import Task

from . import machine

KEYS = {"vgg": {"width": 0.25, "norm": "group"}, "resnet": {"depth": 8}}
EXAMPLES = 500


def trainer(model: str, batch_size: int, as_they_are: bool) -> SequentialTrainer:
    """One client's, of `EXAMPLES` images."""
    dataset = DATASETS["synthetic"](Path(), False, num_train=EXAMPLES, num_test=1)
    normalize = dataset.normalizer(torch.float32)
    data = ClientData(dataset.train, Partition.dealt(np.arange(EXAMPLES), np.array([EXAMPLES])), normalize)
    factory = MODELS[model](**KEYS.get(model, {}))
    task = Task(lambda: factory.build(tuple(dataset.train.x.shape[1:]), 10), 10)
    made = SequentialTrainer(task, data, LocalTrainingSpec(SGD(lr=0.01), Work(batch_size=batch_size)))
    if as_they_are:
        made._innermost = False
    return made


def measure(model: str, batch_size: int, repeats: int) -> list[tuple[float, float]]:
    """CPU seconds of an epoch (as they are, innermost), turn by turn."""
    both = [trainer(model, batch_size, as_they_are) for as_they_are in (True, False)]
    found, start = [], both[0]._task.initial_params(0)
    for repeat in range(repeats + 1):
        seconds = []
        for each in both:
            began = time.process_time()
            each.on((0,), repeat).train(start)
            seconds.append(time.process_time() - began)
        found.append((seconds[0], seconds[1]))
    return found[1:]  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description="channels innermost or outermost")
    parser.add_argument("--models", nargs="+", default=["vgg", "resnet", "cnn", "lenet"], choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=9, help="turns that count [9]")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    described = machine.describe((args.out,))
    found = {model: measure(model, args.batch_size, args.repeats) for model in args.models}
    table = Table("model", "as they are, examples/s", "innermost, examples/s", "gain (quartiles)")
    for model, turns in found.items():
        rates = [f"{EXAMPLES / median(column):,.0f}" for column in zip(*turns, strict=True)]
        low, middle, high = quantiles([before / after for before, after in turns], n=4)
        table.add_row(model, *rates, f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"[dim]{machine.in_words(described)}")
    console.print(f"kept in {machine.keep(Path(args.out), 'layout', {'machine': described, 'seconds': found})}")


if __name__ == "__main__":
    main()
