"""The task of a run: model factory, outputs and loss of a batch, and metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..flat import flatten, settle
from ..rng import global_seed
from .losses import CrossEntropy, Loss


@dataclass(frozen=True)
class Task:
    """Classification; another task overrides what it does differently.

    ``make_model`` returns a freshly initialised module, of any floating dtype. Whatever a step draws at random (noise,
    dropout) comes from torch's global generator, which the trainers seed for each client and round.
    """

    make_model: Callable[[], nn.Module]
    num_classes: int
    loss_of: Loss = CrossEntropy()

    classifies: ClassVar[bool] = True
    """True if outputs are scores of classes: then there is an accuracy, and an example has a gradient of its own."""

    def model(self, seed: int) -> nn.Module:
        """The model with its initial parameters, a function of the seed alone; frozen parts stay in evaluation mode."""
        with global_seed(seed, "model"):
            return settle(self.make_model())

    def initial_params(self, seed: int) -> Tensor:
        """w_0 [D]."""
        return flatten(self.model(seed))

    def outputs(self, module: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The outputs of ``module`` for a batch, [B, C]."""
        return module(x)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, [B]; a step descends along its mean."""
        return self.loss_of(outputs, y)

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Whether each example is classified right, bool [B]."""
        return outputs.argmax(dim=-1) == y

    def pictures(self, module: nn.Module) -> dict[str, Tensor]:
        """Images that the model draws in evaluation mode, name -> [rows, columns, C, H, W] in [0, 1]."""
        return {}
