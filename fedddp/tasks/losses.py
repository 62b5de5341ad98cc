"""Losses of single examples, chosen by ``loss.name``; a user's own is a frozen dataclass named by import path.

A loss is called as ``loss(outputs [B, C], y) -> [B]``, with y [B] for classes (also of positions, as B T examples),
[B, C] for labels and real numbers. It is differentiable, and each example's depends on that example alone: only then do
short batches, K clients side by side and DP-SGD's per-example gradients come out right.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import OWN_CODE, reason

CLASSES = ("class", "positions")


class Loss(Protocol):
    """A loss, built from a configuration section; ``targets``, if it has them, are the targets that it fits."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_y,  p = softmax(outputs)."""

    targets: ClassVar[tuple[str, ...]] = CLASSES

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none")


@dataclass(frozen=True)
class Focal:
    """-(1 - p_y)^gamma log p_y: well classified examples weigh less (Lin et al. 2017, equation 4).

    gamma = 0 is cross-entropy.
    """

    targets: ClassVar[tuple[str, ...]] = CLASSES

    gamma: Annotated[float, Field(ge=0, le=1e9, description="how much less well classified examples weigh")] = 2.0

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(outputs, y, reduction="none")
        smallest = torch.finfo(nll.dtype).tiny  # 1 - p_y = 0 has no finite slope for gamma below 1
        return (-torch.expm1(-nll)).clamp(min=smallest) ** self.gamma * nll


@dataclass(frozen=True)
class LabelSmoothing:
    """(1 - s) (-log p_y) + (s / C) sum_c -log p_c: a fraction s of the label is spread over all classes.

    Szegedy et al. 2016, section 7. s = 0 is cross-entropy.
    """

    targets: ClassVar[tuple[str, ...]] = CLASSES

    smoothing: Annotated[float, Field(ge=0, le=1, description="s, fraction of the label given to all classes")] = 0.1

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none", label_smoothing=self.smoothing)


@dataclass(frozen=True)
class MulticlassHinge:
    """max(0, margin + max_{c != y} o_c - o_y), the multi-class support vector machine's (Crammer & Singer 2001).

    Zero once the right score leads every other by ``margin``. With ``client.optimizer.weight_decay`` as the
    regularisation, a linear model is a linear SVM and ``model.name=svm`` one with a Gaussian kernel.
    """

    targets: ClassVar[tuple[str, ...]] = CLASSES

    margin: Annotated[float, Field(gt=0, le=1e9, description="by how much the right score has to lead")] = 1.0

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        right = torch.arange(outputs.shape[-1], device=y.device) == y.unsqueeze(-1)  # [B, C]
        others = outputs.masked_fill(right, -torch.inf).amax(dim=-1)
        return (self.margin + others - outputs.gather(-1, y.unsqueeze(-1)).squeeze(-1)).clamp(min=0)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-[p y log s(o) + (1 - y) log(1 - s(o))] for logits o, s the sigmoid; mean over an example's labels."""

    positive_weight: Annotated[float, Field(gt=0, le=1e9, description="p, weight of a yes")] = 1.0

    targets: ClassVar[tuple[str, ...]] = ("labels",)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        y = y.to(outputs.dtype)
        # softplus: torch's own loss, by log_sigmoid, wakes all threads for 50 numbers, 20 ms where cores are busy
        losses = self.positive_weight * y * F.softplus(-outputs) + (1 - y) * F.softplus(outputs)
        return losses.mean(dim=-1)


@dataclass(frozen=True)
class SquaredError:
    """(o - y)^2, mean over an example's numbers."""

    targets: ClassVar[tuple[str, ...]] = ("real",)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return ((outputs - y) ** 2).mean(dim=-1)


@dataclass(frozen=True)
class AbsoluteError:
    """|o - y|, mean over an example's numbers."""

    targets: ClassVar[tuple[str, ...]] = ("real",)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).abs().mean(dim=-1)


@dataclass(frozen=True)
class Huber:
    """e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2), e = o - y; mean over an example's numbers."""

    delta: Annotated[float, Field(gt=0, le=1e9, description="error from which the loss grows linearly")] = 1.0

    targets: ClassVar[tuple[str, ...]] = ("real",)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(outputs, y, delta=self.delta, reduction="none").mean(dim=-1)


@dataclass(frozen=True)
class Natural:
    """The loss that the task names: cross-entropy of classes, binary cross-entropy of labels, squared error of
    numbers."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        raise TypeError("loss.name=auto is filled in when a configuration is resolved")


LOSSES: dict[str, type] = {
    "auto": Natural,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "absolute_error": AbsoluteError,
    "huber": Huber,
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "label_smoothing": LabelSmoothing,
    "multiclass_hinge": MulticlassHinge,
}


def check(loss: Loss, targets: str, count: int) -> None:
    """Raise ValueError, in one line, for a loss that is not [B] of each example alone, finite and differentiable.

    ``targets``: the kind of targets that it has to fit; ``count``: the number of outputs.
    """
    fits = getattr(loss, "targets", (targets,))
    if targets not in fits:
        names = ", ".join(name for name, cls in LOSSES.items() if targets in getattr(cls, "targets", ()))
        raise ValueError(f"does not fit the targets of this task; use loss.name=auto, or one of {names}")
    outputs = torch.linspace(-1, 1, 3 * count).view(3, count).sin().requires_grad_()
    y = torch.arange(3) % count if targets in CLASSES else (outputs.detach() > 0).to(outputs.dtype)
    try:
        losses = loss(outputs, y)
    except OWN_CODE as error:
        raise ValueError(f"fails on outputs [3, {count}] and targets {list(y.shape)} ({reason(error)})") from error
    if not isinstance(losses, Tensor) or losses.shape != (3,):
        got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"should give [3] losses for 3 examples, gives {got}; do not average over the batch")
    if not losses.isfinite().all() or not losses.requires_grad:
        raise ValueError("should be finite and differentiable in the outputs")
    alone = torch.cat([loss(outputs[i : i + 1], y[i : i + 1]) for i in range(3)])
    if not torch.allclose(losses, alone, rtol=1e-4, atol=1e-6):
        raise ValueError("an example's loss depends on the others in its batch; it may depend on that example alone")
