"""The interface of attacks, and those that need no other client's update: label flip, sign flip, Gaussian noise.

Simulations, to test an aggregation rule. `Attack` changes nothing; each attack overrides what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..data import Examples


@dataclass(frozen=True)
class Attack:
    """Base class of attacks: the number of Byzantine clients."""

    num_clients: Annotated[
        int, Field(ge=0, description="how many clients are Byzantine, drawn from the seed; 0 = a clean run, watched")
    ] = 1

    omniscient: ClassVar[bool] = False
    """True if it needs the honest clients' updates."""

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        """The examples that a Byzantine client trains on instead of its own, of the same number."""
        return own

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        """The vector [d] that it uploads instead of ``row``."""
        return row

    def columns(self, x: Tensor, byzantine: Tensor) -> Tensor:
        """The columns that the rule gets instead of ``x [m, c]``, of all updates; ``byzantine`` bool [m]."""
        return x

    def probes(self, test: Examples, num_classes: int) -> Mapping[str, Examples]:
        """Sets of examples on which accuracy measures the attack's success, by the metric's name.

        Raises ValueError if the attack is impossible on such examples, whether or not a client is Byzantine.
        """
        return {}


@dataclass(frozen=True)
class NoAttack(Attack):
    """Everybody is honest."""

    num_clients: Annotated[
        int, Field(ge=0, description="how many clients are Byzantine, drawn from the seed; 1 with any attack")
    ] = 0

    def __post_init__(self) -> None:
        if self.num_clients:
            raise ValueError(f"num_clients={self.num_clients} has no effect with attack.name=none; name an attack")


@dataclass(frozen=True)
class LabelFlip(Attack):
    """y -> C - 1 - y on all of a Byzantine client's examples (Fang, Cao, Jia, Gong 2020)."""

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        return Examples(own.x, num_classes - 1 - own.y)


@dataclass(frozen=True)
class SignFlip(Attack):
    """x -> -scale x: an honest update, reversed (Li, Xu, Chen, Giannakis, Ling 2019)."""

    scale: Annotated[float, Field(gt=0, description="how much longer the reversed update is")] = 1.0

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return -self.scale * row


@dataclass(frozen=True)
class Gaussian(Attack):
    """x -> N(0, std^2 I): noise alone (Blanchard et al. 2017)."""

    std: Annotated[float, Field(gt=0, description="standard deviation of each coordinate")] = 1.0

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return (self.std * torch.randn(len(row), generator=stream, dtype=row.dtype)).to(row.device)
