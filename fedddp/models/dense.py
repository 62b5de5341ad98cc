"""Multinomial logistic regression, McMahan's perceptron "2NN", and a kernel machine by random Fourier features."""

from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import ModelFactory


@dataclass(frozen=True)
class Logistic(ModelFactory):
    """One linear layer on the pixels; 7,850 parameters at 784-10. Its loss is convex: runs compare exactly."""

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), num_classes))


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
        self.register_buffer("weight", sqrt(2 * gamma) * torch.randn(features, inputs), persistent=False)
        self.register_buffer("phase", 2 * pi * torch.rand(features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.addmm(self.phase, x.flatten(1), self.weight.t())
        return sqrt(2 / len(self.phase)) * angles.cos()


@dataclass(frozen=True)
class SVM(ModelFactory):
    """A linear layer on random Fourier features; with ``loss.name=multiclass_hinge``, an SVM with a Gaussian kernel.

    ``client.optimizer.weight_decay`` is its regularisation. Only the linear layer trains and travels, F C + C numbers.
    On inputs normalised by a deviation s, gamma is s^2 times what it is on pixels from 0 to 1.
    """

    features: Annotated[int, Field(ge=1, le=100_000, description="F, number of random features")] = 2000
    gamma: Annotated[
        float, Field(gt=0, le=1e9, description="of the kernel exp(-gamma |x - y|^2) on normalised inputs")
    ] = 0.0017

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        features = RandomFeatures(prod(shape), self.features, self.gamma)
        return nn.Sequential(features, nn.Linear(self.features, num_classes))
