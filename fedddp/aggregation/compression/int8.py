"""Int8: eight bits per coordinate on a grid common to all clients, so that the all_reduce sums integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...comm import Comm, Purpose
from ...rng import generator
from ..reduce import Reduce
from .base import Compression, Setting

LEAST_LEVELS = 50
TINY = 1e-30  # a bucket of smaller values is taken for zero: its quantum would be no float32


@dataclass(frozen=True)
class Int8(Compression):
    """Eight bits per coordinate, by stochastic rounding to integers that the all-reduce sums.

    Rounding in buckets: QSGD (Alistarh et al. 2017, arXiv 1610.02132); sums of integers on a common grid: IntSGD
    (Mishchenko et al. 2022, arXiv 2102.08374).

    Of a bucket of coordinates b, with weights n_k and a quantum that all clients know,

        S_b = sum_k n_k max_{i in b} |u_{k,i}|     q_b = S_b / L     C(u_k)_i = (q_b / n_k) round(n_k u_{k,i} / q_b)

    where ``round`` goes up or down at random such that its mean is its argument. Hence unbiased. Integers are summed
    modulo 256; S_b bounds any sum of the arguments, so that with L = 126 - m levels every rounding of m clients
    fits. From 76 clients on L stays at 50: the sum of the arguments is at most L in magnitude, their roundings'
    variance at most L too, so that a sum leaves int8 with a probability below 1e-16 (Bernstein's inequality).
    The error of the mean has a standard deviation of at most sqrt(min(m / 4, L)) q_b / sum n: of the bucket's largest
    magnitudes' mean 1.4% for 10 clients, 10% for 100, 14% for any number. A grid for each client alone, as in QSGD, has
    a smaller error where there are many clients, but integers of different scales have no integer sum.

    Linear. Two all_reduces: of S_b, what is not compressed and the tail (8 bytes each), then of one byte a
    coordinate: 2 (R-1)/R (C + 8 C / bucket) bytes from each rank, a quarter of float32's. The result is the same for
    any number of ranks (to the bit if aggregation.sum=exact makes the scales so). A rank keeps its clients' updates
    until the scales are known: 4 D m / R bytes.
    """

    bucket: Annotated[int, Field(ge=16, le=2**31, description="coordinates per scale")] = 1024

    def sum(self, setting: Setting) -> Reduce:
        return Int8Sum(self, setting)


def levels(clients: int) -> int:
    """L, the largest magnitude of the sum of what ``clients`` clients round."""
    return max(126 - clients, LEAST_LEVELS)


class Int8Sum:
    """Sums the scales by one small all_reduce, then the integers."""

    def __init__(self, method: Int8, setting: Setting) -> None:
        self._columns, self._seed = method.columns(setting.layout, setting.spec), setting.seed
        self._bucket, self._dtype = method.bucket, setting.spec.dtype
        self._buckets = -(-self._columns.compressed // method.bucket)
        self._small = setting.new_sum(torch.float64)  # so that the scales do not depend on the order of ranks

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._small.open(self._buckets + self._columns.plain, tail + 1, total_weight)
        self.tail, self._count = self._small.tail[:-1], self._small.tail[-1:]
        self._kept: list[tuple[int, float, Tensor]] = []

    @property
    def bound(self) -> float:
        return min(self._small.bound, torch.finfo(torch.float32).max)

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        compressed, plain = self._columns.split(rows)
        kept = self._in_buckets(compressed)  # [K, buckets, bucket]
        self._small.add(torch.cat([kept.abs().amax(dim=-1), plain], dim=1).double(), weight, ids)
        self._count += len(rows)
        self._kept += zip(ids, weight.tolist(), kept, strict=True)

    def total(self, comm: Comm, round: int) -> Tensor:
        sums = self._small.total(comm, round)
        scale, plain = sums.split([self._buckets, self._columns.plain])
        quantum = scale / levels(int(self._count))  # [buckets]
        per_quantum = torch.where(quantum > TINY, 1 / quantum, 0.0)
        integers = torch.zeros(self._buckets, self._bucket, dtype=torch.int8, device=sums.device)
        for client, n, row in self._kept:
            integers += self._rounded(row, (n * per_quantum)[:, None], client, round)
        self._kept.clear()
        integers = comm.all_reduce(integers.flatten()[: self._columns.compressed], Purpose.AGGREGATE)
        total = self._in_buckets(integers.to(self._dtype)) * quantum.to(self._dtype)[:, None]
        return self._columns.join(total.flatten()[: self._columns.compressed], plain)

    def _rounded(self, row: Tensor, factor: Tensor, client: int, round: int) -> Tensor:
        """``row * factor`` rounded up with the probability of its fraction, by draws of the client's own."""
        draws = torch.rand(row.shape, generator=generator(self._seed, "int8", round, client)).to(row)
        return torch.addcmul(draws, row, factor.to(row)).floor_().to(torch.int8)

    def _in_buckets(self, x: Tensor) -> Tensor:
        """[..., C] as [..., buckets, bucket], padded with zeros."""
        padding = self._buckets * self._bucket - x.shape[-1]
        return torch.nn.functional.pad(x, (0, padding)).unflatten(-1, (self._buckets, self._bucket))
