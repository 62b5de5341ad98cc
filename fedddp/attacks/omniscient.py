"""Attacks by colluding clients that know the honest updates (ALIE, IPM): each sends the same inconspicuous vector.

Both are coordinate-wise, so that they apply to any columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..aggregation.rules import summed
from .byzantine import Attack


@dataclass(frozen=True)
class ALIE(Attack):
    """Baruch, Baruch, Goldberg 2019, "A little is enough: circumventing defenses for distributed learning".

    x -> mean - z std of the honest updates, coordinate by coordinate: within the spread that honest clients have
    anyway. (The paper's attackers estimate both from the updates they own; here they know the honest ones.)
    """

    z: Annotated[
        float,
        Field(ge=0, description="standard deviations from the mean; 0 = the largest that the paper's count gives"),
    ] = 1.5

    omniscient: ClassVar[bool] = True

    def columns(self, x: Tensor, byzantine: Tensor) -> Tensor:
        honest = x[~byzantine]
        if not len(honest):
            return x
        mean = summed(honest) / len(honest)
        std = (summed((honest - mean).square()) / len(honest)).sqrt()
        z = self.z or z_max(len(x), int(byzantine.sum()))
        return torch.where(byzantine[:, None], mean - z * std, x)


def z_max(m: int, f: int) -> float:
    """Phi^-1((m - f - s) / (m - f)), s = floor(m / 2 + 1) - f honest supporters to win over; at least 0."""
    supporters = m // 2 + 1 - f
    quantile = torch.tensor((m - f - supporters) / (m - f), dtype=torch.float64)
    return max(0.0, float(torch.special.ndtri(quantile.clamp(max=1 - 1e-9))))


@dataclass(frozen=True)
class IPM(Attack):
    """Xie, Koyejo, Gupta 2020, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation".

    x -> -epsilon mean of the honest updates: small, it passes for one of them; above (m - f) / f, it turns the mean.
    """

    epsilon: Annotated[float, Field(gt=0, description="length of the reversed mean")] = 0.5

    omniscient: ClassVar[bool] = True

    def columns(self, x: Tensor, byzantine: Tensor) -> Tensor:
        honest = x[~byzantine]
        if not len(honest):
            return x
        return torch.where(byzantine[:, None], -self.epsilon * (summed(honest) / len(honest)), x)
