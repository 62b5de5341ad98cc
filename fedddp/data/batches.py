"""Plan local training: how much a client does in a round, and the examples of each batch, for K clients at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import derive, numpy_generator

MOST_PLANNED = 2**26
"""Slots in the plan of clients that train together: 600 MB, a number and a flag each."""


@dataclass(frozen=True)
class BatchPlan:
    """``index [K, T, B]`` into each client's own examples, ``mask [K, T, B]`` (false pads), ``steps [K]``."""

    index: Tensor
    mask: Tensor
    steps: Tensor


def plan(
    sizes: Sequence[int],
    ids: Sequence[int],
    round: int,
    *,
    epochs: int = 1,
    batch_size: int,
    seed: int,
    steps: Tensor | None = None,
    smallest: int = 1,
    done: Tensor | None = None,
) -> BatchPlan:
    """E shuffled passes over each client's examples in batches of B, the last one of a pass possibly short.

    ``batch_size`` 0 takes a client's whole data as one batch. ``steps [K]``: of each client, instead of E passes; it
    then stops in the middle of one. A client's order depends on (seed, round, client) only: fewer steps are the first
    ones of more. ``smallest``: a last batch of fewer examples joins the one before. ``done [K]``: the steps that each
    client took in earlier rounds: its batches are then those that follow in an order of passes that never stopped,
    and depend on (seed, client, done) only.
    """
    if steps is None:
        steps = num_steps(torch.tensor(sizes, dtype=torch.long), epochs, batch_size, smallest)
    width = max((_widest(n, batch_size, smallest) for n in sizes), default=0)
    horizon = int(steps.max()) if len(sizes) else 0
    index = torch.zeros(len(sizes), horizon, width, dtype=torch.long)
    mask = torch.zeros(len(sizes), horizon, width, dtype=torch.bool)
    stream = torch.Generator()
    for n in set(sizes) - {0}:  # clients of one size together: most of the work is then done once
        rows = [row for row, size in enumerate(sizes) if size == n]
        b, widest, own_steps = min(batch_size or n, n), _widest(n, batch_size, smallest), steps[rows]
        per_epoch, most = -(-n // b) - (widest > b), int(own_steps.max())
        before = torch.zeros_like(own_steps) if done is None else done[rows]
        skipped = before % per_epoch  # batches of the first pass, [rows]
        passes = -(-(int(skipped.max()) + most) // per_epoch)
        order = torch.zeros(len(rows), passes, max(n, per_epoch * b), dtype=torch.long)
        for own, row, first in zip(order, rows, (before // per_epoch).tolist(), strict=True):
            stream.manual_seed(derive(seed, "batches", round, ids[row]))
            for number, one_pass in enumerate(own, first):
                if done is not None:
                    stream.manual_seed(derive(seed, "passes", number, ids[row]))
                torch.randperm(n, generator=stream, out=one_pass[:n])
        order, filled = (
            (order, torch.arange(per_epoch * b) < n) if widest == b else _joined(order, per_epoch, b, widest)
        )
        there = filled.view(per_epoch, widest).repeat(passes, 1)  # [passes per_epoch, widest]
        batches = order.view(len(rows), -1, widest)
        if skipped.any():
            at = skipped.unsqueeze(1) + torch.arange(most)  # [rows, most]
            there, batches = there[at], batches[torch.arange(len(rows)).unsqueeze(1), at]
        else:
            there, batches = there[:most], batches[:, :most]
        if int(own_steps.min()) < most:
            there = there & (torch.arange(most) < own_steps.unsqueeze(1)).unsqueeze(2)
            batches = batches.masked_fill(~there, 0)
        index[rows, :most, :widest], mask[rows, :most, :widest] = batches, there
    return BatchPlan(index, mask, steps)


def extreme_batches(sizes: Tensor, batch_size: int, steps: int | None = None, smallest: int = 1) -> tuple[int, int]:
    """The largest and the smallest batch that `plan` makes for clients of ``sizes`` [N]; 0 if nobody has enough.

    ``steps``: how many a client takes at most, instead of whole passes.
    """
    some = sizes[sizes >= max(1, smallest)].unique()
    if not len(some):
        return 0, 0
    if not batch_size:
        return int(some[-1]), int(some[0])
    if steps is not None:
        some = some.clamp(max=batch_size * steps)
    some = torch.where(some > 2 * batch_size, batch_size + some % batch_size, some).unique()  # what ends alike
    made = plan(some.tolist(), range(len(some)), 0, batch_size=batch_size, seed=0, smallest=smallest).mask.sum(dim=2)
    return int(made.max()), int(made[made > 0].min())


def num_steps(sizes: Tensor, epochs: int, batch_size: int, smallest: int = 1) -> Tensor:
    """The steps of `plan` for clients of ``sizes`` [any shape], without making it: E ceil(n / B), less what joins."""
    if not batch_size:
        return epochs * (sizes > 0).to(sizes.dtype)
    left = sizes % batch_size
    joins = (left > 0) & (left < smallest) & (sizes > batch_size)
    return epochs * (-(-sizes // batch_size) - joins.to(sizes.dtype))


def _widest(n: int, batch_size: int, smallest: int) -> int:
    """The examples of the largest batch of a client that has ``n``."""
    b = min(batch_size or n, n)
    return b + n % b if n > b and n % b < smallest else b


def _joined(order: Tensor, per_epoch: int, b: int, widest: int) -> tuple[Tensor, Tensor]:
    """``order [rows, passes, n]`` in batches of ``b``, the last of each pass of ``widest``; mask of filled slots."""
    filled = (torch.arange(widest) < torch.tensor([b] * (per_epoch - 1) + [widest]).unsqueeze(1)).flatten()
    laid = order.new_zeros(*order.shape[:2], len(filled))
    laid[..., filled] = order
    return laid, filled


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
