"""The task of a run: model factory, outputs and loss of a batch, and metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..flat import flatten, settle
from ..rng import global_seed
from .losses import CrossEntropy, Loss
from .metrics import MOST_LABELS, Confusion, Sums, TopK


@dataclass(frozen=True)
class Task:
    """Classification; another task overrides what it does differently.

    ``make_model`` returns a freshly initialised module, of any floating dtype; ``num_classes`` is the number of its
    outputs. Whatever a step draws at random (noise, dropout) comes from torch's global generator, which the trainers
    seed for each client and round.
    """

    make_model: Callable[[], nn.Module]
    num_classes: int
    loss_of: Loss = CrossEntropy()

    targets: ClassVar[str] = "class"
    """The kind of targets, a key of `fedddp.data.targets.TARGETS`."""
    classifies: ClassVar[bool] = True
    """Whether outputs are scores of classes, one class an example: then there is a confusion matrix."""
    draws: ClassVar[bool] = False
    """Whether a step draws noise of its own: clients then train one by one; no example has a gradient of its own."""
    primary: ClassVar[str] = "accuracy"
    """The metric that is shown first, and by which a model is the best; empty: minus the loss."""
    measured: ClassVar[str] = "accuracy"
    """What `correct` is a mean of, as training and each client's evaluation report it."""

    def model(self, seed: int) -> nn.Module:
        """The model with its initial parameters, a function of the seed alone; frozen parts stay in evaluation mode."""
        with global_seed(seed, "model"):
            return settle(self.make_model())

    def initial_params(self, seed: int) -> Tensor:
        """w_0 [D]."""
        return flatten(self.model(seed))

    def output_shape(self, y: Tensor) -> tuple[int, ...]:
        """The shape of the outputs for targets ``y [B, ...]``."""
        return (len(y), self.num_classes)

    def outputs(self, module: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The outputs of ``module`` for a batch, [B, C]."""
        return module(x)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What outputs stand for, of the same shape: themselves, or numbers in the units of the targets."""
        return outputs

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        """What a model predicts for inputs ``x [n, ...]``, n entries by the name of a column, for a reader.

        Args:
            predict: from inputs to predictions, see `predictions`.
            x: the inputs.
        """
        largest = torch.softmax(predict(x).float(), dim=-1).max(dim=-1)
        return {"class": largest.indices.tolist(), "softmax": largest.values.tolist()}

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, [B]; a step descends along its mean."""
        return self.loss_of(outputs, y)

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """How well each example is predicted, [B]: whether it is classified right, bool."""
        return outputs.argmax(dim=-1) == y

    @property
    def sums(self) -> Sequence[Sums]:
        """What an evaluation sums over examples."""
        top5 = [TopK(5)] if self.num_classes > 5 else []
        return [Confusion(self.num_classes) if self.num_classes <= MOST_LABELS else TopK(1), *top5]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, the primary one first."""
        names = [name for part in self.sums for name in part.metrics(torch.ones(part.size, dtype=torch.float64))]
        return tuple(sorted(names, key=lambda name: name != self.primary))

    def pictures(self, module: nn.Module) -> dict[str, Tensor]:
        """Images that the model draws in evaluation mode, name -> [rows, columns, C, H, W] in [0, 1]."""
        return {}

    def texts(self, module: nn.Module, device: torch.device) -> dict[str, str]:
        """Texts that the model, which is on ``device``, writes in evaluation mode, by name."""
        return {}
