"""Sum in the ring of integers modulo 2^64 or 2^32: exact, independent of order, compatible with masks and noise.

A weighted row n_k u_k becomes the integers trunc(n_k u_k 2^f). Truncation is toward zero, so that no norm grows, and
happens once per client, after weighting: the mean is off by at most m 2^-f / sum n. The ring wraps silently; that it
never does is checked at start, in Python integers: sum n * ceil(bound 2^f) + noise < 2^(bits - 1).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..comm import Comm, Purpose

FINEST = 40
"""No more fraction bits than this: 2^-40 is finer than float32 updates, and float64 holds 53 bits."""
LARGEST_NOISE = 2**48
"""In units of the ring: the noise's bound is a dozen standard deviations, of which samplers take up to 2^45."""

Exchange = Callable[[Tensor, int, int], Tensor]
"""From this rank's integers [L], the round (0-based) and how many clients they are of, to the sum over ranks."""

Sampler = Callable[[int, float], Tensor]
"""From ``(n, std)`` to n int64 draws of noise with that standard deviation, in units of the ring."""


def in_the_clear(comm: Comm) -> Exchange:
    """The exchange without masks: one all_reduce of integers."""
    return lambda buffer, round, contributors: comm.all_reduce(buffer, Purpose.AGGREGATE)


def fraction_bits(bound: float, total_weight: float, bits: int, noise: float = 0.0) -> int:
    """The largest f for which no sum can leave the ring, at most 40. Raises ValueError if there is none above 0.

    ``bound`` of an update's entries, ``total_weight`` of any round's clients, ``noise`` a bound in units of the sum.
    """
    for f in range(FINEST, 0, -1):
        if needed(bound, total_weight, f, noise) < 2 ** (bits - 1) and _ceil_scaled(noise, f) <= LARGEST_NOISE:
            return f
    noisy = f", with noise up to {noise:g}," if noise else ""
    raise ValueError(
        f"entries up to {bound:g} of {total_weight:g} examples{noisy} do not fit into {bits} bits; use a smaller "
        "bound, more bits, or fewer clients per round"
    )


def needed(bound: float, total_weight: float, f: int, noise: float = 0.0) -> int:
    """The largest magnitude that a sum can have with ``f`` fraction bits, in exact arithmetic."""
    weight = math.ceil(total_weight)
    return weight * _ceil_scaled(bound, f) + _ceil_scaled(noise, f)


def _ceil_scaled(x: float, f: int) -> int:
    numerator, denominator = float(x).as_integer_ratio()
    return -((-numerator << f) // denominator)


class RingSum:
    """A `Reduce` of integers; ``tail`` is real, in the same buffer with 20 fraction bits.

    ``noisy_ranks``: the number of ranks whose noise is sure to be in a sum. Each rank adds std / sqrt(noisy_ranks), so
    that no single rank has to be trusted with the noise, and together they add at least the noise that was promised.
    """

    def __init__(
        self,
        exchange: Exchange,
        device: torch.device | str,
        *,
        bits: int = 64,
        bound: float = 8.0,
        total_weight: float,
        noise_bound: float = 0.0,
        noisy_ranks: int = 1,
    ) -> None:
        self._exchange, self._device, self._bits = exchange, torch.device(device), bits
        self._dtype = torch.int64 if bits == 64 else torch.int32
        self.bound, self._noisy_ranks = bound, noisy_ranks
        self.fraction_bits = fraction_bits(bound, total_weight, bits, noise_bound)
        self._sum = torch.empty(0, dtype=torch.int64)
        self._words = 1 if bits == 64 else 4

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._sum = torch.zeros(length, dtype=torch.int64, device=self._device)
        self.tail = torch.zeros(tail, dtype=torch.float64)
        self._contributors = 0

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        self._contributors += len(rows)
        for row, n in zip(rows, weight.tolist(), strict=True):
            self._sum += row.to(torch.float64, copy=True).mul_(n * 2.0**self.fraction_bits).to(torch.int64)

    def perturb(self, stds: Sequence[tuple[int, float]], sampler: Sampler) -> None:
        """Add this rank's part of the noise: for each vector its length and the noise's std in the sum."""
        start = 0
        for length, std in stds:
            own = std * 2.0**self.fraction_bits / math.sqrt(self._noisy_ranks)
            if own:
                self._sum[start : start + length] += sampler(length, own).to(self._device)
            start += length

    def total(self, comm: Comm, round: int) -> Tensor:
        slots = _words((self.tail * 2.0**20).round().to(torch.int64), self._words)
        buffer = torch.cat([self._sum.to(self._dtype), slots.to(self._dtype).to(self._device)])
        total = self._exchange(buffer, round, self._contributors)
        length = len(self._sum)
        self.tail.copy_(_joined(total[length:].to("cpu", torch.int64), self._words).double() / 2.0**20)
        return total[:length].to(torch.float64) / 2.0**self.fraction_bits


def _words(x: Tensor, count: int) -> Tensor:
    """int64 [n] as [n * count] non-negative numbers of 64 / count bits, the lowest first; unchanged for count 1."""
    if count == 1:
        return x
    width = 64 // count
    return torch.stack([(x >> (width * i)) & (2**width - 1) for i in range(count)], dim=1).flatten()


def _joined(x: Tensor, count: int) -> Tensor:
    """The inverse of `_words`, also after words were summed over up to 2^15 ranks: carries belong to the next word."""
    if count == 1:
        return x
    words = x.view(-1, count)
    width = 64 // count
    return torch.stack([words[:, i] << (width * i) for i in range(count)], dim=1).sum(dim=1)
