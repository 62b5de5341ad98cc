"""Learning rates over rounds, or over all local steps: a factor on the client optimizer's lr."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field

WARM_UP = Field(ge=0, le=10**12, description="rounds (steps) of a linear rise before the full rate")
ROUNDS = Field(
    ge=0, le=10**12, description="rounds (steps), warm-up included, until the last factor is reached; 0 = the whole run"
)
UNIT = Field(
    description="what changes the factor and is counted by the schedule's other keys: rounds, or the steps of "
    "client.local_steps, those of all rounds in a row"
)
FLOOR = Field(ge=0, le=1, description="the last factor")


class LearningRate(Protocol):
    """The interface of schedules."""

    def factor(self, round: int) -> float:
        """The factor on the learning rate in ``round`` (0-based)."""
        ...

    def over(self, rounds: int) -> Self:
        """The schedule for a run of ``rounds`` rounds. Raises ValueError if its rate becomes 0."""
        ...


@dataclass(frozen=True)
class Constant:
    """Constant after a warm-up of W rounds, (t + 1) / (W + 1) in round t < W; other schedules decay from there.

    With ``unit=steps``, t counts local steps instead: step i of a round r is t = r H + i.
    """

    warmup: Annotated[int, WARM_UP] = 0
    unit: Annotated[Literal["rounds", "steps"], UNIT] = "rounds"

    def factor(self, round: int) -> float:
        return (round + 1) / (self.warmup + 1) if round < self.warmup else self._decayed(round - self.warmup)

    def over(self, rounds: int) -> Self:
        return self

    def _decayed(self, t: int) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay(Constant):
    """A factor gamma every few rounds: gamma^floor(t / every)."""

    gamma: Annotated[float, Field(gt=0, le=1, description="factor at each step down")] = 0.5
    every: Annotated[int, Field(ge=1, le=10**12, description="rounds between steps down")] = 10

    def _decayed(self, t: int) -> float:
        return self.gamma ** (t // self.every)


@dataclass(frozen=True)
class Exponential(Constant):
    """A factor gamma per round: gamma^t."""

    gamma: Annotated[float, Field(gt=0, le=1, description="factor from round to round")] = 0.99

    def _decayed(self, t: int) -> float:
        return self.gamma**t


@dataclass(frozen=True)
class Linear(Constant):
    """Linear from 1 to ``floor`` in T = ``rounds`` rounds: floor + (1 - floor) (1 - t / T)."""

    rounds: Annotated[int, ROUNDS] = 0
    floor: Annotated[float, FLOOR] = 0.0

    def over(self, rounds: int) -> Self:
        known = replace(self, rounds=self.rounds or rounds)
        if known.rounds < rounds and not known.floor:
            raise ValueError(
                f"rounds={known.rounds}: the rate is 0 after them; set floor above 0, or rounds to {rounds}"
            )
        return known

    def _decayed(self, t: int) -> float:
        done = min(1.0, t / max(1, self.rounds - self.warmup))
        return self.floor + (1 - self.floor) * self._left(done)

    def _left(self, done: float) -> float:
        return 1 - done


@dataclass(frozen=True)
class Cosine(Linear):
    """From 1 to ``floor`` along half a cosine, (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter 2017)."""

    def _left(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


def in_steps(schedule: LearningRate) -> bool:
    """Whether the factor changes with every local step; one of a user's own may have no unit."""
    return getattr(schedule, "unit", "rounds") == "steps"


SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": Exponential,
    "cosine": Cosine,
    "linear": Linear,
}
CONSTANT = Constant()
