"""Tasks by name: what a model learns from a batch, and what its evaluation measures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import nn

from ..data import Dataset
from .conditional_gan import Adversarial, ConditionalGAN
from .labels import Binary, MultiLabel
from .losses import CrossEntropy, Loss
from .next_token import NextTokenPrediction
from .regression import Regression
from .task import Task


class TaskFactory(Protocol):
    """Builds a task from a configuration section. Raises ValueError for a loss or data that do not fit.

    A user's own need have ``build`` alone: it then learns classes, with as many outputs and the loss of a classifier.
    """

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task: ...


@dataclass(frozen=True)
class Classification:
    """Predict the label of an input, with the loss of the section ``loss``."""

    targets: ClassVar[str] = "class"
    natural: ClassVar[Loss] = CrossEntropy()

    def outputs(self, dataset: Dataset) -> int:
        """C."""
        return dataset.num_classes

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        return Task(make_model, dataset.num_classes, loss)


def targets_of(section: object) -> str:
    """Return the kind of targets that the task of ``section`` learns."""
    return getattr(section, "targets", Classification.targets)


def natural_loss(section: object) -> Loss:
    """Return the loss that stands for ``loss.name=auto``."""
    return getattr(section, "natural", Classification.natural)


def num_outputs(section: object, dataset: Dataset) -> int:
    """Return how many outputs the model gives, for each example or position. Raises ValueError for unfit data."""
    count = getattr(section, "outputs", None)
    return count(dataset) if count else dataset.num_classes


TASKS: dict[str, type] = {
    "classification": Classification,
    "binary": Binary,
    "multilabel": MultiLabel,
    "regression": Regression,
    "next_token": NextTokenPrediction,
    "conditional_gan": ConditionalGAN,
}

__all__ = [
    "TASKS",
    "Adversarial",
    "Binary",
    "Classification",
    "ConditionalGAN",
    "MultiLabel",
    "NextTokenPrediction",
    "Regression",
    "Task",
    "TaskFactory",
    "natural_loss",
    "num_outputs",
    "targets_of",
]
