"""Tasks by name: what a model learns from a batch, and what its evaluation measures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ..data import Dataset
from .conditional_gan import Adversarial, ConditionalGAN
from .losses import Loss
from .task import Task


class TaskFactory(Protocol):
    """Builds a task from a configuration section. Raises ValueError for a loss it would ignore."""

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task: ...


@dataclass(frozen=True)
class Classification:
    """Predict the label of an input, with the loss of the section ``loss``."""

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        return Task(make_model, dataset.num_classes, loss)


TASKS: dict[str, type] = {"classification": Classification, "conditional_gan": ConditionalGAN}

__all__ = ["TASKS", "Adversarial", "Classification", "ConditionalGAN", "Task", "TaskFactory"]
