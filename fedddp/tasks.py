"""What is learned: the model's factory, the loss and the metrics of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .flat import flatten
from .rng import global_seed


@dataclass(frozen=True)
class Task:
    """Classification of images. ``make_model`` returns a freshly initialised module, of any floating dtype."""

    make_model: Callable[[], nn.Module]
    num_classes: int

    def model(self, seed: int) -> nn.Module:
        """The model with its initial parameters, a function of the seed alone."""
        with global_seed(seed, "model"):
            return self.make_model()

    def initial_params(self, seed: int) -> Tensor:
        """w_0 [D]."""
        return flatten(self.model(seed))

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of each example, [B]."""
        return F.cross_entropy(outputs, y, reduction="none")

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Whether each example is classified right, bool [B]."""
        return outputs.argmax(dim=-1) == y
