"""Centred clipping: each update is clipped around the current guess of their centre.

Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", centred clipping:

    v <- v + (1/m) sum_k (x_k - v) min(1, tau / |x_k - v|)

Uniform. The paper starts each round at the last round's result; here v starts at 0, so that nothing has to be
remembered: updates are differences from the global model. With a radius far below the updates' norms, take more
iterations: the centre moves by no more than tau in each, and they send nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .base import Combination, distances
from .norm_bound import shrink


@dataclass(frozen=True)
class CenteredClipping(Combination):
    """What is far from the centre moves it by tau / m, in whatever direction. v is sum_k a_k x_k throughout."""

    radius: Annotated[float, Field(gt=0, description="tau, as far as an update may lie from the centre")] = 1.0
    iterations: Annotated[int, Field(ge=1, description="how often the centre is moved; this sends nothing")] = 5

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        coefficients = torch.zeros_like(weight)
        for _ in range(self.iterations):
            pull = shrink(distances(known, coefficients), self.radius) / len(weight)
            coefficients = coefficients * (1 - pull.sum()) + pull
        return coefficients
