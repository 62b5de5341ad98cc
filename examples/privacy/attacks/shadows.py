"""Shadow models: many models trained alike, each on a random half of a pool of examples (Carlini et al. 2022).

They are trained by the program's own trainers, as clients that own overlapping examples and start apart, and any of
them can stand for the attacked model while the others are the attacker's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.privacy.attacks import membership
from fedddp.clients import Trainer
from fedddp.data import ClientData, Dataset, Examples, Normalizer, Partition
from fedddp.flat import FlatModule
from fedddp.rng import generator
from fedddp.tasks import Task


@dataclass(frozen=True)
class Pool:
    """Examples and, for S models, who is trained on which of them: ``members [S, n]`` bool."""

    examples: Examples
    members: Tensor

    @classmethod
    def of(cls, examples: Examples, models: int, seed: int) -> Pool:
        """Every example is a member of half of the ``models`` (an even number), which ones is drawn for each."""
        if models < 4 or models % 2:
            raise ValueError(f"{models} models: an even number, at least 4, so that each example is in half of them")
        draws = torch.rand(models, len(examples), generator=generator(seed, "shadow members"))
        return cls(examples, draws.argsort(dim=0) < models // 2)

    def clients(self, like: Dataset, device: torch.device, dtype: torch.dtype) -> ClientData:
        """Model s as client s, who owns its members."""
        order = self.members.nonzero()[:, 1].numpy()
        partition = Partition.dealt(order, self.members.sum(dim=1).numpy().astype(np.int64))
        return ClientData(self.examples, partition, like.normalizer(dtype, device), placement="shared", device=device)


def trained(trainer: Trainer, task: Task, models: int, seed: int) -> Tensor:
    """``models`` models [S, D], each from an initial model of its own, as far as ``trainer``'s local epochs go."""
    w = []
    ids = list(range(models))
    for first in range(0, models, trainer.width):
        block = ids[first : first + trainer.width]
        start = torch.stack([task.initial_params(seed + 1 + k) for k in block])
        w.append(trainer.on(block, 0).train(start).w)
    return torch.cat(w)


def confidences(task: Task, w: Tensor, examples: Examples, normalize: Normalizer) -> Tensor:
    """`membership.phi` of every model ``w [S, D]`` on all of ``examples``, [S, n]."""
    flat = FlatModule(task.model(0).eval())
    x, rows = normalize(examples.x), []
    with torch.no_grad():
        for one in w:
            flat.load(one)
            rows.append(membership.phi(flat.module(x), examples.y))
    return torch.stack(rows)


@dataclass(frozen=True)
class Verdict:
    """AUCs of the attacks on a set of models, and of a control in which nobody is a member."""

    loss: membership.AUC
    offline: membership.AUC
    online: membership.AUC
    control: membership.AUC


def attack(pool: Tensor, members: Tensor, held_out: Tensor, *, targets: int, seed: int = 0) -> Verdict:
    """Attack the first ``targets`` of S models, each with the other S - 1 as shadow models.

    ``pool [S, n]`` and ``held_out [S, h]``: confidences on the pool and on examples that no model was trained on.
    The control draws half of the held-out examples for each model and calls them members.
    """
    online, offline = (torch.stack([_lira(pool, members, t, kind) for t in range(targets)]) for kind in (True, False))
    nobody = torch.rand(targets, held_out.shape[1], generator=generator(seed, "nobody")) < 0.5

    def judged(scores: Tensor, of: Tensor, seed: int = seed) -> membership.AUC:
        return membership.pooled_auc(scores, of, seed=seed)

    return Verdict(
        loss=judged(membership.loss_threshold(pool[:targets]), members[:targets]),
        offline=judged(offline, members[:targets]),
        online=judged(online, members[:targets]),
        control=judged(membership.loss_threshold(held_out[:targets]), nobody),
    )


def _lira(pool: Tensor, members: Tensor, target: int, online: bool) -> Tensor:
    others = torch.arange(len(pool)) != target
    return membership.lira(pool[target], pool[others], members[others], online=online)


Build = Callable[[Task, ClientData], Trainer]
"""The trainer under attack, given whose examples are whose."""
