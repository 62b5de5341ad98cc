"""Centred clipping: clip each update around the current estimate of their centre.

Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", centred clipping:

    v <- v + (1/m) sum_k (x_k - v) min(1, tau / |x_k - v|)

Uniform. v starts at the last round's result, as in the paper, whose guarantee rests on that and on momentum of the
clients (`momentum`), with which honest updates vary less from round to round than an attack has to; ``history`` off: at
0, which is the global model. With a radius far below the updates' norms, take more iterations: the centre moves by no
more than tau in each, and they send nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from .base import Combination, distances
from .norm_bound import shrink


@dataclass(frozen=True)
class CenteredClipping(Combination):
    """What is far from the centre moves it by tau / m, in whatever direction. v is a combination of rows throughout."""

    radius: Annotated[float, Field(gt=0, description="tau, as far as an update may lie from the centre")] = 1.0
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
