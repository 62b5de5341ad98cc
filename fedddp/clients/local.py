"""Local training as algorithms see it, whatever trains the clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..data import ClientData
from ..types import LocalResult

Correction = Callable[[Tensor, Tensor], Tensor]
"""``correct(g [K, P], w [K, P]) -> g [K, P]``, applied to the gradient of every local step."""

NUMBERS_AT_ONCE = 4096 * 784  # of inputs normalised together: amortises the call, 13 MB in float32


class Trainer(Protocol):
    """How a rank trains its clients: at most ``width`` of them at once."""

    @property
    def width(self) -> int: ...

    @property
    def data(self) -> ClientData: ...

    def on(self, ids: Sequence[int], round: int) -> Local:
        """The clients ``ids`` (at most ``width``) in round ``round``."""
        ...

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult: ...


@dataclass(frozen=True)
class Local:
    """K clients of one round, ready to train: what an algorithm's ``client_update`` works with."""

    trainer: Trainer
    ids: Sequence[int]
    round: int
    num_examples: Tensor  # [K]

    def train(self, start: Tensor, correct: Correction | None = None) -> LocalResult:
        """E local epochs from ``start`` ([D], or [K, D] where clients start apart). May be called more than once."""
        return self.trainer.train(self, start, correct)
