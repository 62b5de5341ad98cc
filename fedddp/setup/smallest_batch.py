"""The smallest batch that a model trains on: 1, or 2 where it normalises by the statistics of a batch."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..config import Config, UsageError, chosen
from ..data import MOST_PLANNED, Work
from ..errors import first_line
from ..rng import global_seed
from ..tasks import Task

log = logging.getLogger("fedddp")


def smallest_batch(config: Config, task: Task, inputs: Tensor, y: Tensor) -> int:
    """2 for a model that takes a training step on two ``inputs`` of labels ``y`` and not on the first alone, else 1.

    That is BatchNorm where a channel has one value for each example. Raises UsageError if every batch has one example.
    """
    seed = config.run.seed
    module = task.model(seed).train()
    parameters = [p for p in module.parameters() if p.requires_grad]

    def fails(n: int) -> str | None:
        try:
            with global_seed(seed, "trial"):
                loss = task.loss(task.outputs(module, inputs[:n], y[:n]), y[:n]).mean()
                torch.autograd.grad(loss, parameters, allow_unused=True)
        except Exception as error:
            return first_line(error)
        return None

    why = None if fails(2) else fails(1)
    if why and config.client.batch_size == 1:
        raise UsageError(
            f"client.batch_size=1: {chosen(config, 'model')} does not train on a batch of one example ({why}); use 2 "
            "or more, or a model that does not normalise by the batch"
        )
    return 2 if why else 1


def check_sizes(config: Config, sizes: Tensor, smallest: int, *, warn: bool) -> None:
    """``sizes [N]``: the examples of each client. Raises UsageError where none has enough for a batch, or one looks at
    too many in a round."""
    client = config.client
    work = Work(client.local_epochs, client.local_steps, client.batch_size, smallest=smallest)
    planned = int(work.planned(sizes).max())
    if planned > MOST_PLANNED:
        key = "local_steps" if client.local_steps else "local_epochs"
        raise UsageError(
            f"client.{key}={getattr(client, key)}: the largest client ({int(sizes.max())} examples) would train on "
            f"{planned:,} examples a round, {MOST_PLANNED:,} are the most; lower it"
        )
    few = int(((sizes > 0) & (sizes < smallest)).sum())
    if not few:
        return
    what = f"{few} of {len(sizes)} clients have a single example, on which {chosen(config, 'model')} does not train"
    if not (sizes >= smallest).any():
        raise UsageError(f"{what}; use a model that does not normalise by the batch, or fewer clients")
    if warn:
        log.warning("%s: they fail in every round and are left out", what)
