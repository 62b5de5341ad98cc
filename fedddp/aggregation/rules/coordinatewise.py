"""Coordinate-wise median and trimmed mean.

Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-robust distributed learning: towards optimal statistical rates",
Definitions 1 and 2 and Algorithm 1. Clients count alike, whatever their weight: a vote that its owner can make heavier
is no protection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor

from .base import Coordinatewise, summed


@dataclass(frozen=True)
class Median(Coordinatewise):
    """med_k x_k of each coordinate; of an even number, the mean of the two in the middle. Uniform."""

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        ordered = x.sort(dim=0).values
        return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


@dataclass(frozen=True)
class TrimmedMean(Coordinatewise):
    """The mean of each coordinate without its f largest and f smallest values. Uniform. Needs m > 2 f."""

    num_byzantine: Annotated[
        int | None,
        Field(
            ge=0,
            description="f, clients that may be Byzantine: so many values are cut off at either end; "
            "default attack.num_clients, at least 1",
        ),
    ] = None

    needs: ClassVar[str] = "m > 2 f"

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    @property
    def f(self) -> int:
        return 1 if self.num_byzantine is None else self.num_byzantine

    def facing(self, num_byzantine: int) -> Self:
        return replace(self, num_byzantine=num_byzantine) if self.num_byzantine is None else self

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        kept = x.sort(dim=0).values[self.f : len(x) - self.f]
        return summed(kept) / len(kept)
