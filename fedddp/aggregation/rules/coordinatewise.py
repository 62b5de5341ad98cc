"""Coordinate-wise rules: the weighted mean, the median and the trimmed mean.

Median and trimmed mean: Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-robust distributed learning: towards optimal
statistical rates", Definitions 1 and 2 and Algorithm 1. Under these two clients count alike, whatever their weight: a
vote that its owner can make heavier is no protection.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import ByzantineRule, Coordinatewise, summed


@dataclass(frozen=True)
class WeightedMean(Coordinatewise):
    """The weighted mean, sum_k n_k x_k / sum_k n_k, which one Byzantine client can move anywhere.

    As a rule it is used only where attackers must see single updates; otherwise a running sum gives the same.
    """

    streams: ClassVar[bool] = True

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        return summed(x * weight.to(x)[:, None]) / float(weight.sum())


@dataclass(frozen=True)
class Median(Coordinatewise):
    """The median of each coordinate; of an even number, the mean of the two in the middle. Uniform."""

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        ordered = x.sort(dim=0).values
        return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


@dataclass(frozen=True)
class TrimmedMean(ByzantineRule, Coordinatewise):
    """The mean of each coordinate without its f largest and f smallest values. Uniform. Needs m > 2 f."""

    needs: ClassVar[str] = "m > 2 f"

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        kept = x.sort(dim=0).values[self.f : len(x) - self.f]
        return summed(kept) / len(kept)
