"""McMahan's two-hidden-layer perceptron, the "2NN"."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated

from pydantic import Field
from torch import nn


@dataclass(frozen=True)
class MLP:
    """Two hidden layers of ReLU units; 199,210 parameters at 784-200-200-10 (McMahan et al. 2017, section 3)."""

    hidden: Annotated[int, Field(ge=1, description="units of each hidden layer")] = 200

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(shape), self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_classes),
        )
