"""A kernel machine by random Fourier features."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import ModelFactory


class RandomFeatures(nn.Module):
    """z(x) = sqrt(2 / F) cos(W x + b), rows of W from N(0, 2 gamma I), b from U[0, 2 pi] (Rahimi & Recht 2007).

    z(x) . z(y) approximates the Gaussian kernel exp(-gamma |x - y|^2), with an error of order 1 / sqrt(F). W and b are
    drawn where the model is made, which every rank does from the same seed: they are constants, no part of the flat
    vector, and never sent.
    """

    weight: Tensor
    phase: Tensor

    def __init__(self, inputs: int, features: int, gamma: float) -> None:
        super().__init__()
        self.register_buffer("weight", math.sqrt(2 * gamma) * torch.randn(features, inputs), persistent=False)
        self.register_buffer("phase", 2 * math.pi * torch.rand(features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.addmm(self.phase, x.flatten(1), self.weight.t())
        return math.sqrt(2 / len(self.phase)) * angles.cos()


@dataclass(frozen=True)
class SVM(ModelFactory):
    """A linear layer on random Fourier features; with ``loss.name=multiclass_hinge``, an SVM with a Gaussian kernel.

    ``client.optimizer.weight_decay`` is its regularisation. Only the linear layer trains and travels, F C + C numbers.
    On inputs normalised by a deviation s, gamma is s^2 times what it is on pixels from 0 to 1.
    """

    features: Annotated[int, Field(ge=1, le=100_000, description="F, number of random features")] = 2000
    gamma: Annotated[float, Field(gt=0, description="of the kernel exp(-gamma |x - y|^2) on normalised inputs")] = (
        0.0017
    )

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        features = RandomFeatures(math.prod(shape), self.features, self.gamma)
        return nn.Sequential(features, nn.Linear(self.features, num_classes))
