"""Rules that clip updates: norm bounding, and centred clipping around an estimate of their centre."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .base import COLUMNS_AT_ONCE, Combination, distances


@dataclass(frozen=True)
class NormBound(Combination):
    """The mean of updates that are scaled down to at most a given norm.

    Sun, Kairouz, Suresh, McMahan 2019, "Can you really backdoor federated learning?":

        sum_k a_k x_k / max(1, |x_k| / M) [+ N(0, noise^2 I)]

    Weighted by a_k = n_k / n, as in the paper. It bounds the effect of a boosted update in a round, and nothing else.
    The noise (their "weak differential privacy") is drawn from the seed and is not accounted for as privacy. Only norms
    have to be known, not the Gram matrix.
    """

    bound: Annotated[
        float, Field(gt=0, le=1e9, description="M, largest L2 norm of an update; longer ones are scaled")
    ] = 1.0
    noise: Annotated[
        float,
        Field(
            ge=0, le=1e9, description="standard deviation of Gaussian noise on each coordinate of the result; 0 = off"
        ),
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


@dataclass(frozen=True)
class CenteredClipping(Combination):
    """A centre that each update moves by at most radius / m.

    Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", centred clipping:

        v <- v + (1/m) sum_k (x_k - v) min(1, tau / |x_k - v|)

    Uniform. v, a combination of rows throughout, starts at the last round's result, as in the paper, whose guarantee
    rests on that and on momentum of the clients (`momentum`), with which honest updates vary less from round to round
    than an attack has to; ``history`` off: at 0, which is the global model. With a radius far below the updates' norms,
    take more iterations: the centre moves by no more than tau in each, and they send nothing.
    """

    radius: Annotated[float, Field(gt=0, le=1e9, description="tau, as far as an update may lie from the centre")] = 1.0
    iterations: Annotated[
        int, Field(ge=1, le=1000, description="how often the centre is moved; this sends nothing")
    ] = 5
    history: Annotated[
        bool, Field(description="start at the last round's result, as in the paper; false = at the global model")
    ] = True
    momentum: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="beta: clients upload (1 - beta) update + beta of what they uploaded before; the paper's "
            "guarantee rests on it; 0 = updates as they are",
        ),
    ] = 0.0

    @property
    def remembers(self) -> bool:
        return self.history

    @property
    def client_momentum(self) -> float:
        return self.momentum

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        m = len(weight)
        coefficients = known.new_zeros(len(known))
        coefficients[m:] = 1  # the last round's result, where it is there
        for _ in range(self.iterations):
            pull = shrink(distances(known, coefficients)[:m], self.radius) / m
            coefficients *= 1 - pull.sum()
            coefficients[:m] += pull
        return coefficients
