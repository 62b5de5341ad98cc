"""Krum and multi-Krum: choose the updates with the closest neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent",
section 4:

    s(i) = sum over the m - f - 2 updates j closest to i of |x_i - x_j|^2;   Krum = the x_i of the smallest s(i)

Multi-Krum averages those of the smallest scores. Uniform: weights are ignored. Needs m >= 2 f + 3.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .base import ByzantineRule, Combination


@dataclass(frozen=True)
class Krum(ByzantineRule, Combination):
    """The one update whose nearest neighbours are closest; of equal scores, that of the lower client id."""

    needs: ClassVar[str] = "m >= 2 f + 3"

    @property
    def least(self) -> int:
        return 2 * self.f + 3

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        return self._mean_of_best(known, 1)

    def _mean_of_best(self, gram: Tensor, count: int) -> Tensor:
        """1 / count for the ``count`` updates of the smallest scores."""
        chosen = scores(gram, self.f).sort(stable=True).indices[:count]
        return torch.zeros_like(gram[0]).index_fill(0, chosen, 1 / count)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the ``selected`` updates whose nearest neighbours are closest."""

    selected: Annotated[
        int,
        Field(
            ge=0, le=10_000_000, description="updates that are averaged, at most m - f; 0 = m - f of those that arrived"
        ),
    ] = 0

    needs: ClassVar[str] = "m >= 2 f + 3 and m >= selected + f"

    @property
    def least(self) -> int:
        return max(super().least, self.selected + self.f)

    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        return self._mean_of_best(known, self.selected or len(known) - self.f)


def scores(gram: Tensor, num_byzantine: int) -> Tensor:
    """s(i) [m], from the Gram matrix [m, m]."""
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * gram).fill_diagonal_(inf)  # an update is not its own neighbour
    return squared.sort(dim=1).values[:, : len(gram) - num_byzantine - 2].sum(dim=1)
