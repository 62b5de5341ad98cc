"""Random-k: all clients of a round send the same few random coordinates, so that the all_reduce sums them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...comm import Comm, Purpose
from ...rng import numpy_generator
from ...types import Delivery
from ..reduce import Reduce
from .base import Compression, Setting


@dataclass(frozen=True)
class RandomK(Compression):
    """A random fraction of the coordinates, the same for all clients of a round.

    Subsampling, a sketched update of Konečný, McMahan et al. 2016 (arXiv 1610.05492), who draw a mask for each client.
    (Their "random mask" is a structured update, of which only some coordinates are trained; here the finished update is
    subsampled.)

    Each round draws a set S of k = `share` C coordinates from (seed, round), the same on every client, and

        C(u)_i = (C / k) u_i  for i in S, else 0

    Unbiased; its variance is (C / k - 1) |u|^2 for one client, and the same multiple of the mean's square for the mean,
    since all clients leave out the same coordinates. Where steps C / k times as long are too long for a model, use a
    smaller algorithm.server_optimizer.lr. Linear: one all_reduce, 8 (R-1)/R k bytes from each rank; no
    index is sent, no state is kept.
    """

    share: Annotated[float, Field(gt=0, le=1, description="fraction of the coordinates that is sent")] = 0.1

    @property
    def delivery(self) -> Delivery:
        return "lossy" if self.share < 1 else "whole"

    def sum(self, setting: Setting) -> Reduce:
        return RandomKSum(self, setting)


class RandomKSum:
    """Sums whole rows on their rank; coordinates are drawn when the sum leaves the rank."""

    def __init__(self, method: RandomK, setting: Setting) -> None:
        self._columns, self._seed = method.columns(setting.layout, setting.spec), setting.seed
        self._kept = max(1, round(method.share * self._columns.compressed))
        self._local = setting.new_sum(setting.spec.dtype)

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._local.open(length, tail, total_weight)
        self.tail = self._local.tail

    @property
    def bound(self) -> float:
        return self._local.bound

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        self._local.add(rows, weight, ids)

    def total(self, comm: Comm, round: int) -> Tensor:
        compressed, plain = self._columns.split(self._local.total(Comm.alone(), round))
        size, k = len(compressed), self._kept
        stream = numpy_generator(self._seed, "random_k", round)
        drawn = torch.from_numpy(stream.choice(size, k, replace=False, shuffle=False)).to(compressed.device)
        buffer = comm.all_reduce(torch.cat([compressed[drawn], plain, self.tail]), Purpose.AGGREGATE)
        values, plain, sums = buffer.split([k, len(plain), len(self.tail)])
        self.tail.copy_(sums)
        sparse = torch.zeros_like(compressed).index_copy_(0, drawn, values * (size / k))
        return self._columns.join(sparse, plain)
