"""A connection that sends nothing and counts what it would send, for estimates before there are other ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .collectives import Comm
from .world import Place


class Counted(Comm):
    """Rank 0 of ``ranks``. Its ``bytes_sent`` grows as in a run, and nothing is waited for.

    The other ranks add zeros to every sum, except to its last R entries, where messages of this program have a slot of
    each rank (how many updates it has): there they are taken to have as much as this rank. What they would send is 0.
    """

    def __init__(self, ranks: int, device: torch.device) -> None:
        super().__init__(Place(0, ranks, 0, ranks), device, store=None, timeout=0.0)

    def all_reduce(self, x: Tensor, purpose: str) -> Tensor:
        slots = super().all_reduce(x, purpose).view(-1)[-self.world_size :]
        slots[1:] = slots[:1].clone()
        return x

    def _exchange(self, op: str, x: Tensor, purpose: str, shape: tuple[int, ...], start: Any, copies: float) -> Tensor:
        self._run(op, x, purpose, start, copies)
        return x.new_zeros(shape)

    def _run(self, op: str, x: Tensor, purpose: str, start: Callable[..., Any], copies: float) -> Tensor:
        self.bytes_sent += math.ceil(copies * x.numel() * x.element_size())
        return x
