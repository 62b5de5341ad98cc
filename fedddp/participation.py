"""How the clients of a round are drawn: the choice ``cohort.sampler``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from .sampling import Losses, PowerOfChoiceSampler, Sampler, SizeSampler, UniformSampler


@dataclass(frozen=True)
class Participation(ABC):
    """How clients are drawn. ``plain_means``: an algorithm's weighting=auto means uniform, and examples is refused if
    ``by_size``. ``asks_losses``: clients report their losses."""

    plain_means: ClassVar[bool] = False
    by_size: ClassVar[bool] = False
    asks_losses: ClassVar[bool] = False

    @abstractmethod
    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        """Of ``size`` clients a round, of a population of ``sizes [N]``. Raises ValueError."""


@dataclass(frozen=True)
class Uniform(Participation):
    """McMahan et al. 2017, Algorithm 1."""

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return UniformSampler(len(sizes), size, seed)


@dataclass(frozen=True)
class BySize(Participation):
    """See `SizeSampler`."""

    plain_means: ClassVar[bool] = True
    by_size: ClassVar[bool] = True

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        return SizeSampler(sizes, size, seed)


@dataclass(frozen=True)
class PowerOfChoice(Participation):
    """See `PowerOfChoiceSampler`."""

    plain_means: ClassVar[bool] = True
    asks_losses: ClassVar[bool] = True
    candidates: Annotated[
        int,
        Field(ge=0, description="d, clients whose losses are compared each round; 0 = 2 m, at most all"),
    ] = 0

    def sampler(self, sizes: Tensor, size: int, seed: int, losses: Losses) -> Sampler:
        candidates = self.candidates or min(2 * size, int((sizes > 0).sum()))
        return PowerOfChoiceSampler(sizes, size, candidates, seed, losses)


SAMPLERS: dict[str, type] = {"uniform": Uniform, "size": BySize, "power_of_choice": PowerOfChoice}
