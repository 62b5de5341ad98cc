"""The geometric median by the smoothed Weiszfeld algorithm (RFA).

Pillutla, Kakade, Harchaoui 2022, "Robust aggregation for federated learning", the smoothed Weiszfeld iteration:

    z <- sum_k b_k x_k / sum_k b_k,   b_k = a_k / max(nu, |z - x_k|)

from the weighted mean on, which minimises sum_k a_k |z - x_k|. Weighted by a_k = n_k / n, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from .base import Combination, distances


@dataclass(frozen=True)
class GeometricMedian(Combination):
    """An update far away pulls as much as one nearby. No iteration costs communication, since z is a combination."""

    iterations: Annotated[int, Field(ge=1, description="steps of the Weiszfeld algorithm; they send nothing")] = 50
    smoothing: Annotated[float, Field(gt=0, description="nu, the distance below which all weigh alike")] = 1e-6

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        share = weight / weight.sum()
        coefficients = share
        for _ in range(self.iterations):
            pull = share / distances(known, coefficients).clamp(min=self.smoothing)
            coefficients = pull / pull.sum()
        return coefficients
