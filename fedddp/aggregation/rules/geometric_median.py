"""Geometric median of the updates, by the smoothed Weiszfeld algorithm (RFA).

Pillutla, Kakade, Harchaoui 2022, "Robust aggregation for federated learning", the smoothed Weiszfeld iteration:

    z <- sum_k b_k x_k / sum_k b_k,   b_k = a_k / max(nu, |z - x_k|)

which minimises sum_k a_k |z - x_k|. Weighted by a_k = n_k / n, as in the paper. There it starts at the mean, which huge
updates carry further away than iterations lead back. Here it starts at the medoid, the update x_j for which
the sum is smallest, and leaves it as Vardi and Zhang 2000, "The multivariate L1-median and associated data depth", do:
with T the step over the others and r = |sum_{k != j} a_k (x_k - x_j) / |x_k - x_j||,

    z = T + min(1, a_j / r) (x_j - T)

since at x_j itself b_j = a_j / nu would hold z there. If r <= a_j, x_j is the geometric median.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .base import Combination, distances


@dataclass(frozen=True)
class GeometricMedian(Combination):
    """The geometric median, which a far update pulls no more than a near one. Iterations send nothing."""

    iterations: Annotated[
        int,
        Field(ge=1, le=1000, description="steps of the Weiszfeld algorithm from the medoid, which send nothing"),
    ] = 3
    smoothing: Annotated[float, Field(gt=0, le=1e9, description="nu, the distance below which all weigh alike")] = 1e-6

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        alpha = weight / weight.sum()
        coefficients = self._from_medoid(known, alpha)
        for _ in range(self.iterations):
            pull = alpha / distances(known, coefficients).clamp(min=self.smoothing)
            coefficients = pull / pull.sum()
        return coefficients

    def _from_medoid(self, known: Tensor, alpha: Tensor) -> Tensor:
        rows = torch.eye(len(alpha), dtype=alpha.dtype, device=alpha.device)
        apart = torch.stack([distances(known, row) for row in rows])
        j = (apart @ alpha).argmin()
        pull = (alpha / apart[j].clamp(min=self.smoothing)).index_fill(0, j, 0.0)
        if not pull.any():  # nobody else
            return rows[j]
        step = pull / pull.sum()
        r = pull.sum() * distances(known, step)[j]
        return step + (alpha[j] / r).clamp(max=1) * (rows[j] - step)
