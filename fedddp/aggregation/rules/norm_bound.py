"""Norm bounding: scale updates down to at most a given norm.

Sun, Kairouz, Suresh, McMahan 2019, "Can you really backdoor federated learning?":

    sum_k a_k x_k / max(1, |x_k| / M) [+ N(0, noise^2 I)]

Weighted by a_k = n_k / n, as in the paper. It bounds what a boosted update can do in a round, and nothing else. The
noise (their "weak differential privacy") is drawn from the seed and is no privacy that is accounted for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .base import COLUMNS_AT_ONCE, Combination


@dataclass(frozen=True)
class NormBound(Combination):
    """The mean of updates that were scaled down to the bound. Only norms have to be known, not the Gram matrix."""

    bound: Annotated[float, Field(gt=0, description="M, largest L2 norm of an update; longer ones are scaled")] = 1.0
    noise: Annotated[
        float, Field(ge=0, description="standard deviation of Gaussian noise on each coordinate of the result; 0 = off")
    ] = 0.0

    def partial(self, x: Tensor) -> Tensor | None:
        """Squared norms [m]."""
        return torch.stack([p.double().square().sum(dim=1) for p in x.split(COLUMNS_AT_ONCE, dim=1)]).sum(dim=0)

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        return weight / weight.sum() * shrink(known.sqrt(), self.bound)

    def finish(self, result: Tensor, stream: torch.Generator) -> Tensor:
        if not self.noise:
            return result
        return result + self.noise * torch.randn(len(result), generator=stream, dtype=result.dtype).to(result.device)


def shrink(norm: Tensor, bound: float) -> Tensor:
    """min(1, bound / norm), and 1 for norm 0."""
    return (bound / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
