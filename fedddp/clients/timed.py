"""Whether batched clients are faster than sequential ones, by taking a few steps both ways."""

import time
from dataclasses import replace

import numpy as np
import torch

from ..data import ClientData, Examples, Normalizer, Partition, Work
from ..optim import CONSTANT, SGD
from ..tasks import Task
from .local import LocalTrainingSpec, Trainer
from .sequential import SequentialTrainer
from .vectorized import VectorizedTrainer
from .vmapped import VmappedModel

CLIENTS, BATCH = 4, 32
"""At most so many clients, and examples of a step."""
NO_RULE = "torch has no batching rule for a part of this model"


def slower(
    oracle: VmappedModel,
    task: Task,
    examples: Examples,
    spec: LocalTrainingSpec,
    *,
    clients: int,
) -> tuple[bool, str]:
    """Whether ``oracle`` takes longer than one client after the other, and by how much, in words.

    Timed only where torch has no batching rule for an operation of the model, and does it client by client. One client
    at a time is not timed: then the choice does not depend on who else uses the machine.
    """
    k, b = max(2, min(clients, CLIENTS)), min(spec.work.batch_size or BATCH, BATCH)
    device, dtype = spec.device, spec.dtype
    some = Examples(examples.x[:b].cpu(), examples.y[:b].cpu())
    partition = Partition(np.arange(len(some)), np.zeros(k, dtype=np.int64), np.full(k, len(some)))  # all own the same
    data = ClientData(some, partition, Normalizer((0.5,), (0.5,), dtype, device), device=device)
    once = replace(spec, optimizer=SGD(), work=Work(batch_size=b), schedule=CONSTANT, clip_norm=None)
    together = VectorizedTrainer(task, data, once, oracle, k)
    start = task.initial_params(spec.seed).to(device, dtype)

    def seconds(trainer: Trainer) -> float:
        begun = time.perf_counter()
        for first in range(0, k, trainer.width):
            trainer.on(range(first, first + trainer.width), 0).train(start)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    seconds(together)  # what is done once
    if not oracle.falls_back:
        return False, ""
    if clients == 1:
        return True, f"gains nothing for one client at a time ({NO_RULE})"
    single = SequentialTrainer(task, data, once)
    seconds(single)
    both, one = (min(times) for times in zip(*((seconds(together), seconds(single)) for _ in range(2)), strict=True))
    if both >= one:
        return True, f"takes {both / one:.1f} times as long ({NO_RULE})"
    return False, f", {one / both:.1f} times as fast as sequential ({NO_RULE})"
