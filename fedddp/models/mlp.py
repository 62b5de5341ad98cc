"""McMahan's two-hidden-layer perceptron, the "2NN"."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from .base import ModelFactory


@dataclass(frozen=True)
class MLP(ModelFactory):
    """Two hidden layers of ReLU units; 199,210 parameters at 784-200-200-10 (McMahan et al. 2017, section 3)."""

    hidden: Annotated[int, Field(ge=1, le=8192, description="units of each hidden layer")] = 200
    norm: Annotated[
        Literal["none", "batch", "layer"], Field(description="normalisation in front of each ReLU; none in the paper")
    ] = "none"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        normed = {"none": [], "batch": [nn.BatchNorm1d], "layer": [nn.LayerNorm]}[self.norm]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (prod(shape), self.hidden):
            layers += [nn.Linear(inputs, self.hidden), *(norm(self.hidden) for norm in normed), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden, num_classes))
