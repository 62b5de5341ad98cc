"""Yes-or-no targets: one an example (binary), or several (multi-label)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data import Dataset
from .losses import BinaryCrossEntropy, Loss
from .metrics import Decisions, Histogram, Sums
from .task import Task


@dataclass(frozen=True)
class Deciding(Task):
    """L logits an example, one for each label; yes above 0. The targets are [B, L], or the class 0 or 1, [B]."""

    loss_of: Loss = BinaryCrossEntropy()

    targets: ClassVar[str] = "labels"
    classifies: ClassVar[bool] = False
    primary: ClassVar[str] = "auroc"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Task.loss`: the mean over an example's labels."""
        return self.loss_of(outputs, y.reshape(outputs.shape))

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The fraction of each example's labels that are decided right, [B]."""
        return ((outputs > 0) == (y.reshape(outputs.shape) > 0)).double().mean(dim=-1)

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        """See `Task.answers`: the labels that an example has, and the probability of each."""
        p = torch.sigmoid(predict(x).float())
        labels = [" ".join(str(int(label)) for label in row.nonzero()) for row in p > 0.5]
        return {"labels": labels, **{f"probability {i}": column.tolist() for i, column in enumerate(p.unbind(dim=-1))}}

    @property
    def sums(self) -> Sequence[Sums]:
        return [Histogram(self.num_classes), Decisions(self.num_classes)]


@dataclass(frozen=True)
class DecidingOnce(Deciding):
    """One logit an example; the targets are the classes 0 (no) and 1 (yes)."""

    targets: ClassVar[str] = "class"

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        """See `Task.answers`: the class, and the probability of class 1."""
        p = torch.sigmoid(predict(x).float()).squeeze(-1)
        return {"class": (p > 0.5).long().tolist(), "probability": p.tolist()}


@dataclass(frozen=True)
class Binary:
    """Predict yes (class 1) or no (class 0) by one logit; AUROC, accuracy, F1, balanced accuracy."""

    targets: ClassVar[str] = "class"
    natural: ClassVar[Loss] = BinaryCrossEntropy()

    def outputs(self, dataset: Dataset) -> int:
        """One logit. Raises ValueError for another number of classes than two."""
        if dataset.num_classes != 2:
            raise ValueError(
                f"task.name='binary': the data have {dataset.num_classes} classes, not 2; use task.name=classification"
            )
        return 1

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        return DecidingOnce(make_model, 1, loss)


@dataclass(frozen=True)
class MultiLabel:
    """Predict which of L labels an example has, by a logit each; AUROC and F1 are means over labels."""

    targets: ClassVar[str] = "labels"
    natural: ClassVar[Loss] = BinaryCrossEntropy()

    def outputs(self, dataset: Dataset) -> int:
        """L."""
        return dataset.num_classes

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        return Deciding(make_model, dataset.num_classes, loss)
