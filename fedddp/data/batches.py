"""The index plan of local training: which example is in which batch of which step, for K clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import generator


@dataclass(frozen=True)
class Plan:
    """``index [K, T, B]`` into each client's own examples, ``mask [K, T, B]`` (false pads), ``steps [K]``."""

    index: Tensor
    mask: Tensor
    steps: Tensor


def plan(sizes: Sequence[int], ids: Sequence[int], round: int, *, epochs: int, batch_size: int, seed: int) -> Plan:
    """E shuffled passes over each client's examples in batches of B, the last one of a pass possibly short.

    ``batch_size`` 0 takes a client's whole data as one batch. A client's order depends on (seed, round, client) only.
    """
    batch_sizes = [batch_size or size for size in sizes]
    width = max((min(b, n) for b, n in zip(batch_sizes, sizes, strict=True)), default=0)
    per_epoch = [-(-n // b) if n else 0 for b, n in zip(batch_sizes, sizes, strict=True)]
    horizon = epochs * max(per_epoch, default=0)
    index = torch.zeros(len(sizes), horizon, width, dtype=torch.long)
    mask = torch.zeros(len(sizes), horizon, width, dtype=torch.bool)
    for k, (client, n, steps) in enumerate(zip(ids, sizes, per_epoch, strict=True)):
        stream = generator(seed, "batches", round, client)
        b = min(batch_sizes[k], n)
        for epoch in range(epochs):
            flat = torch.zeros(steps * b, dtype=torch.long)
            flat[:n] = torch.randperm(n, generator=stream)
            rows = slice(epoch * steps, (epoch + 1) * steps)
            index[k, rows, :b] = flat.view(steps, b)
            mask[k, rows, :b] = (torch.arange(steps * b) < n).view(steps, b)
    return Plan(index, mask, torch.tensor([epochs * s for s in per_epoch]))


def num_steps(sizes: Tensor, epochs: int, batch_size: int) -> Tensor:
    """The steps of `plan` for clients of ``sizes`` [any shape], without making it: E ceil(n / B)."""
    per_epoch = -(-sizes // batch_size) if batch_size else (sizes > 0).to(sizes.dtype)
    return epochs * per_epoch
