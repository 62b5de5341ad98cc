"""Local training as algorithms see it, whatever trains the clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..comm import interrupt
from ..data import MOST_PLANNED, BatchPlan, ClientData, Work, plan
from ..flat import FlatModule
from ..optim import CONSTANT, SGD, LearningRate, Optimizer, Scheduled, in_steps, scaled
from ..rng import global_seed
from ..tasks import Task
from ..types import Contrast, LocalResult

Correction = Callable[[Tensor, Tensor], Tensor]
"""``correct(g [K, P], w [K, P]) -> g [K, P]``, applied to the gradient of every local step."""
NUMBERS_AT_ONCE = 4096 * 784  # of inputs normalised together: amortises the call, 13 MB in float32


def arithmetic(device: torch.device | str, autocast: bool) -> AbstractContextManager[Any]:
    """What a forward pass runs in, again and again: nothing, or `torch.autocast` to bfloat16.

    The backward pass needs none: it takes the operations' own way back, and the casts hand gradients over in the
    parameters' precision. Cast weights are not kept, since the weights change from one use to the next.
    """
    if not autocast:
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)


def channels_innermost(x: Tensor) -> Tensor:
    """A copy of images ``x [B, C, H, W]`` in which the channels of a pixel lie side by side.

    Strides are given explicitly: with one channel both layouts are the same memory, and PyTorch would keep the other.
    """
    _, c, h, w = x.shape
    return torch.empty_strided(x.shape, (c * h * w, 1, w * c, c), dtype=x.dtype, device=x.device).copy_(x)


def gains_innermost(module: nn.Module, call: Callable[[Tensor], object], x: Tensor) -> bool:
    """Whether ``module`` is faster on `channels_innermost` of images like ``x``, and runs on them.

    PyTorch's convolutions on a CPU are, 1.2 to 1.5 times for a whole training step. A forward of one's own need not
    run: ``view`` may be called in it on what is laid out otherwise then. ``call`` tries it, in evaluation mode.
    """
    if x.device.type != "cpu" or x.dim() != 4 or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return False
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(channels_innermost(x))
    except Exception:  # whatever it is: such a model is trained on images as they are
        return False
    finally:
        module.train(training)
    return True


@dataclass(frozen=True)
class LocalTrainingSpec:
    """How every client trains, whatever trains it.

    Attributes:
        optimizer: the client optimizer.
        work: how many steps a client takes in a round, on batches of which size.
        schedule: the learning rate over rounds, or over local steps.
        clip_norm: the largest L2 norm of the gradient that a step follows, an algorithm's correction included; None:
            any.
        seed: the seed of the run.
        device: where clients train.
        dtype: the precision of the weights.
        autocast: whether forward passes compute in bfloat16.
    """

    optimizer: Optimizer = SGD()
    work: Work = Work()
    schedule: LearningRate = CONSTANT
    clip_norm: float | None = None
    seed: int = 0
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    autocast: bool = False

    def factor(self, round: int, step: int = 0) -> float:
        """The factor on the learning rate in local step ``step`` of ``round`` (both 0-based)."""
        by_step = in_steps(self.schedule)
        return self.schedule.factor(round * (self.work.steps or 1) + step if by_step else round)


class Trainer(ABC):
    """How a rank trains its clients: at most ``width`` of them at once, E epochs of minibatch steps each."""

    width: int

    def __init__(self, task: Task, data: ClientData, spec: LocalTrainingSpec) -> None:
        self._task, self.data, self._training = task, data, spec
        self._scoring: FlatModule | None = None

    @cached_property
    def mean_examples(self) -> float:
        """Over all clients of the population."""
        return float(self.data.sizes.double().mean())

    def on(self, ids: Sequence[int], round: int) -> Local:
        """The clients ``ids`` (at most ``width``) in round ``round``."""
        counted = self.data.counted(ids)  # a client without a target that counts neither trains nor weighs
        return Local(self, ids, round, self.data.sizes[list(ids)] * (counted > 0), counted)

    def limited_to(self, steps: int) -> Self:
        """The same trainer, whose clients take at most ``steps`` steps: to time them. With DP-SGD, at most one pass."""
        other = copy(self)
        work = replace(self._training.work, epochs=1, steps=steps, stragglers=0.0)
        other._training = replace(self._training, work=work)
        return other

    def optimizer(self, round: int) -> Optimizer:
        """The client optimizer as it is in ``round`` (0-based)."""
        spec = self._training
        if in_steps(spec.schedule):
            return Scheduled(spec.optimizer, partial(spec.factor, round))
        return scaled(spec.optimizer, spec.factor(round))

    @property
    def planned_at_once(self) -> int:
        """How many clients can train together before their plan takes too much memory."""
        return max(1, MOST_PLANNED // max(1, int(self._training.work.planned(self.data.sizes).max())))

    def plan(self, local: Local) -> BatchPlan:
        """The batches of each client's steps."""
        work, seed = self._training.work, self._training.seed
        if local.epochs:
            work = replace(work, epochs=local.epochs, steps=None)
        done = local.done if work.steps else None  # epochs are whole passes
        return plan(
            local.num_examples.tolist(),
            local.ids,
            local.round,
            steps=work.drawn(local.num_examples, local.ids, local.round, seed),
            batch_size=work.batch_size,
            smallest=work.smallest,
            seed=seed,
            done=done,
        )

    def loss(self, local: Local, w: Tensor) -> Tensor:
        """See `Local.loss`."""
        if self._scoring is None:
            self._scoring = FlatModule(self._task.model(self._training.seed).to(w.dtype), w.device)
            self._scoring.module.eval()
        rows = w.view(-1, w.shape[-1]).expand(len(local.ids), -1)
        losses = [self._mean_loss(self._scoring, k, row) for k, row in zip(local.ids, rows, strict=True)]
        return torch.tensor(losses, dtype=torch.float64)

    def _mean_loss(self, model: FlatModule, client: int, w: Tensor) -> float:
        x, y = self.data.examples(client)
        at_once = max(1, NUMBERS_AT_ONCE // max(1, x[0].numel() if len(x) else 1))
        model.load(w)
        total = 0.0
        with torch.no_grad(), global_seed(self._training.seed, "loss", client):  # a task may draw noise
            for first in range(0, len(y), at_once):
                interrupt.check()
                labels = y[first : first + at_once]
                outputs = self._task.outputs(model.module, self.data.normalize(x[first : first + at_once]), labels)
                total += float(self._task.loss(outputs, labels).sum())
        return total / max(1, len(y))

    def limited(self, correct: Correction | None) -> Correction | None:
        """``correct``, then the gradient of each client scaled down to the norm ``clip_norm``, if there is one."""
        bound = self._training.clip_norm
        if bound is None:
            return correct

        def clipped(g: Tensor, w: Tensor) -> Tensor:
            g = correct(g, w) if correct else g
            norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)  # [K, 1]
            return g * (bound / norm).clamp(max=1)  # a norm of 0 gives inf, which is clamped

        return clipped

    @abstractmethod
    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""


@dataclass(frozen=True)
class Local:
    """K clients of one round, ready to train: what an algorithm's ``client_update`` works with."""

    trainer: Trainer
    ids: Sequence[int]
    round: int
    num_examples: Tensor  # [K]
    counted: Tensor  # [K], see `fedddp.data.ClientData.counted`
    epochs: int | None = None
    """E, where it is not the configured one."""
    chosen: Optimizer | None = None
    """The optimizer, where it is not the configured one."""
    origin: Local | None = None
    """What this is a variant of, with other epochs, another optimizer or a contrast."""
    contrast: Contrast | None = None
    done: Tensor | None = None
    """Steps that each client took in earlier rounds, [K], where its batches go on from there."""

    @property
    def mean_examples(self) -> float:
        """Over all clients of the population."""
        return self.trainer.mean_examples

    @property
    def optimizer(self) -> Optimizer:
        """The client optimizer, as it is in this round."""
        return self.chosen or self.trainer.optimizer(self.round)

    def train(
        self,
        start: Tensor,
        correct: Correction | None = None,
        *,
        epochs: int | None = None,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
    ) -> LocalResult:
        """E local epochs from ``start`` ([D], or [K, D] where clients start apart). May be called more than once.

        Another ``optimizer`` gets flat vectors ([P] of each client) if there is a ``correct``, else a list of layers.
        """
        changed = replace(self, epochs=epochs, chosen=optimizer, contrast=contrast, origin=self)
        local = changed if epochs or optimizer or contrast else self
        return self.trainer.train(local, start, self.trainer.limited(correct))

    def after(self, steps: Tensor) -> Local:
        """The same clients, whose batches follow those of the ``steps [K]`` that they took before."""
        return replace(self, done=steps)

    def loss(self, w: Tensor) -> Tensor:
        """Mean loss of each client's own examples at ``w`` ([D] or [K, D]), in evaluation mode; [K] float64."""
        return self.trainer.loss(self, w)

    def gradient(self, w: Tensor) -> Tensor:
        """Mean gradient of each client's batches at ``w`` ([D] or [K, D]), in training mode; [K, D], 0 for buffers.

        One epoch whose steps go nowhere: whatever trains clients computes it.
        """
        total = w.new_zeros(len(self.ids), w.shape[-1])

        def add(g: Tensor, _: Tensor) -> Tensor:
            total[:, : g.shape[1]] += g
            return torch.zeros_like(g)

        still = replace(self, epochs=1, chosen=SGD(), contrast=None, origin=self)
        steps = self.trainer.train(still, w, add).steps
        return total / steps.clamp(min=1).to(total)[:, None]
