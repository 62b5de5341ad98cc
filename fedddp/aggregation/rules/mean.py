"""The weighted mean: what federated averaging does, and what one Byzantine client can move anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Coordinatewise, summed


@dataclass(frozen=True)
class Mean(Coordinatewise):
    """sum_k n_k x_k / sum_k n_k (McMahan et al. 2017).

    As a rule it is used only where attackers must see single updates; otherwise a running sum gives the same.
    """

    streams: ClassVar[bool] = True

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        return summed(x * weight.to(x)[:, None]) / float(weight.sum())
