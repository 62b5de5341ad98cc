"""Compute a client's work in a round: passes over its examples, or steps, and less for stragglers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import numpy_generator
from .batches import num_steps

MOST_PLANNED = 2**26
"""Slots in the plan of clients that train together: 600 MB, a number and a flag each."""


@dataclass(frozen=True)
class Work:
    """E ``epochs`` in batches of B, or H ``steps`` for every client alike.

    A client is a straggler with probability ``stragglers``: it then does 1, 2, ... or all of the E epochs (H steps),
    each as likely (Li et al. 2020, "Federated optimization in heterogeneous networks", section 5.2).
    """

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 10
    stragglers: float = 0.0
    smallest: int = 1
    """The fewest examples of a batch: a shorter last one joins the batch before."""

    def most(self, sizes: Tensor) -> Tensor:
        """The steps of clients of ``sizes`` [any shape] that do all their work."""
        return self._steps(sizes, torch.ones_like(sizes) * (self.steps or self.epochs))

    def planned(self, sizes: Tensor) -> Tensor:
        """The slots in the plan of each client of ``sizes`` [any shape] that does all its work: steps times batch."""
        batch = sizes.clamp(max=self.batch_size) if self.batch_size else sizes
        return self.most(sizes) * batch

    def drawn(self, sizes: Tensor, ids: Sequence[int], round: int, seed: int) -> Tensor:
        """The steps [K] of the clients ``ids`` in ``round``; a function of (seed, round, client)."""
        amount = self.steps or self.epochs
        if not self.stragglers:
            return self.most(sizes)
        drawn = [numpy_generator(seed, "stragglers", round, k) for k in ids]
        does = [int(rng.integers(1, amount + 1)) if rng.random() < self.stragglers else amount for rng in drawn]
        return self._steps(sizes, torch.tensor(does, dtype=sizes.dtype))

    def late(self, client: int, round: int, seed: int) -> bool:
        """Whether a client is a straggler in ``round``, as `drawn` has it."""
        return bool(numpy_generator(seed, "stragglers", round, client).random() < self.stragglers)

    def _steps(self, sizes: Tensor, amount: Tensor) -> Tensor:
        if self.steps is not None:
            return amount * (sizes > 0)
        return amount * num_steps(sizes, 1, self.batch_size, self.smallest)
