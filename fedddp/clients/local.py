"""Local training as algorithms see it, whatever trains the clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data import ClientData, Plan, plan
from ..optim import Optimizer
from ..tasks import Task
from ..types import LocalResult

Correction = Callable[[Tensor, Tensor], Tensor]
"""``correct(g [K, P], w [K, P]) -> g [K, P]``, applied to the gradient of every local step."""

NUMBERS_AT_ONCE = 4096 * 784  # of inputs normalised together: amortises the call, 13 MB in float32


class Trainer(ABC):
    """How a rank trains its clients: at most ``width`` of them at once, E epochs of minibatch steps each."""

    width: int

    def __init__(
        self,
        task: Task,
        data: ClientData,
        optimizer: Optimizer,
        *,
        local_epochs: int = 1,
        batch_size: int = 10,
        seed: int = 0,
    ) -> None:
        self._task, self.data, self._optimizer = task, data, optimizer
        self._epochs, self._batch_size, self._seed = local_epochs, batch_size, seed

    def on(self, ids: Sequence[int], round: int) -> Local:
        """The clients ``ids`` (at most ``width``) in round ``round``."""
        return Local(self, ids, round, self.data.sizes[list(ids)])

    def plan(self, local: Local) -> Plan:
        """The batches of each client's steps."""
        sizes, how = local.num_examples.tolist(), {"epochs": self._epochs, "batch_size": self._batch_size}
        return plan(sizes, local.ids, local.round, **how, seed=self._seed)

    @abstractmethod
    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""


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
