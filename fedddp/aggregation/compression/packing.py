"""Pack a sparse vector into few bytes; their number follows from its length and number of entries.

Indices: k ascending numbers below n cost log2(n choose k) bits at least, 8.1 an index at k = n / 100. Elias and Fano's
code (Elias 1974, "Efficient storage and retrieval by content and address of static files") takes 8.6: the l =
floor(log2(n / k)) low bits of each as they are, and the high parts, which are ascending small numbers, as a bit set at
high + position. Values: in runs of `RUN`, eight bits each and a float32 scale, or float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RUN = 256
"""Values per scale; neighbours in the vector, hence often of one layer."""


@dataclass(frozen=True)
class SparseCode:
    """``k`` entries of a vector of length ``n``, in `size` bytes; values of ``bits`` 8 or 32."""

    n: int
    k: int
    bits: int

    @property
    def _low_bits(self) -> int:
        return max(0, (self.n // self.k).bit_length() - 1)

    @property
    def _parts(self) -> tuple[int, int, int, int]:
        """Bytes of scales, values, low bits and high bits."""
        scales = 4 * -(-self.k // RUN) if self.bits == 8 else 0
        high = ((self.n - 1) >> self._low_bits) + self.k
        return scales, self.k * self.bits // 8, -(-self.k * self._low_bits // 8), -(-high // 8)

    @property
    def size(self) -> int:
        """Bytes of a packet."""
        return sum(self._parts)

    def pack(self, index: Tensor, values: Tensor) -> Tensor:
        """``index [k]``, ascending, and their ``values [k]`` as uint8 [size]."""
        low = (index[:, None] >> torch.arange(self._low_bits, device=index.device)) & 1  # [k, l]
        high = torch.zeros(8 * self._parts[3], dtype=torch.uint8, device=index.device)
        high[(index >> self._low_bits) + torch.arange(self.k, device=index.device)] = 1
        scales, numbers = self._quantized(values)
        return torch.cat([scales.view(torch.uint8), numbers.view(torch.uint8), _bytes(low.flatten()), _bytes(high)])

    def unpack(self, packet: Tensor) -> tuple[Tensor, Tensor]:
        """Index and values, float32, of a packet."""
        scales, numbers, low, high = packet.split(self._parts)
        places = torch.arange(self._low_bits, device=packet.device)
        set_bits = _bits(high).nonzero().flatten()  # ascending
        index = (set_bits - torch.arange(self.k, device=packet.device)) << self._low_bits
        low = _bits(low)[: self.k * self._low_bits].view(self.k, self._low_bits)
        return index + (low.long() << places).sum(dim=1), self._restored(scales, numbers)

    def _quantized(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scales [runs] and integers to the nearest, or nothing and the values."""
        if self.bits == 32:
            return values.new_empty(0, dtype=torch.float32), values.float()
        runs = torch.nn.functional.pad(values.float(), (0, -self.k % RUN)).view(-1, RUN)
        scales = runs.abs().amax(dim=1) / 127
        integers = (runs / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().clamp_(-127, 127)
        return scales, integers.to(torch.int8).flatten()[: self.k]

    def _restored(self, scales: Tensor, numbers: Tensor) -> Tensor:
        if self.bits == 32:
            return numbers.clone().view(torch.float32)  # a copy lies where four bytes may be read as one number
        runs = torch.nn.functional.pad(numbers.view(torch.int8).float(), (0, -self.k % RUN)).view(-1, RUN)
        return (runs * scales.clone().view(torch.float32)[:, None]).flatten()[: self.k]


def _bytes(bits: Tensor) -> Tensor:
    """0s and 1s [n] as bytes [ceil(n / 8)], the first in the lowest place."""
    octets = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (octets << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(dim=1, dtype=torch.uint8)


def _bits(octets: Tensor) -> Tensor:
    """The inverse of `_bytes`, with the padding."""
    return ((octets[:, None] >> torch.arange(8, dtype=torch.uint8, device=octets.device)) & 1).flatten()
