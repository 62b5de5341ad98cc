"""Random numbers for privacy: a cryptographic key stream, separate from the simulation's generators.

Noise that an adversary can predict protects nothing, and torch's and numpy's generators can be predicted: they are
small, their state follows from their output, and the seed 5 and the seed 5 + 2^32 give the same stream on a CPU. Here
the numbers are the key stream of AES-256 in counter mode (NIST SP 800-38A, 6.5), keyed by the operating system. No
global generator is read or changed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_ZEROS = memoryview(bytes(1 << 16))
_BLOCK = 16  # bytes of an AES block


class Randomness:
    """One stream: every call draws numbers that no earlier call has drawn. All tensors are on the CPU.

    ``predictable`` says that the key follows from a seed (`seeded`): the noise is reproducible and guarantees nothing.
    """

    def __init__(self, key: bytes, *, predictable: bool = False) -> None:
        """The stream of a 32-byte ``key``. Whoever has the key has every number; one key starts one stream.

        Raises ValueError for a key of another length.
        """
        if len(key) != 32:
            raise ValueError(f"a key has 32 bytes, not {len(key)}")
        self.predictable = predictable
        self._key = key
        self._stream: Any = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK))).encryptor()

    @classmethod
    def secret(cls) -> Randomness:
        """A stream that nobody can predict or repeat, keyed by the operating system."""
        return cls(os.urandom(32))

    @classmethod
    def seeded(cls, seed: int, purpose: str, *path: int) -> Randomness:
        """A stream that is a function of its arguments, for tests and reproducible runs. It protects nothing."""
        text = f"fedddp seeded randomness/{seed}/{_text(purpose, path)}"
        return cls(hashlib.sha256(text.encode()).digest(), predictable=True)

    def child(self, purpose: str, *path: int) -> Randomness:
        """A stream of its own, a function of this one's key and the arguments (HMAC-SHA256), not of what was drawn.

        The same arguments start the same stream AGAIN: noise must come from a purpose and path used once.
        """
        key = hmac.digest(self._key, f"fedddp child/{_text(purpose, path)}".encode(), "sha256")
        return Randomness(key, predictable=self.predictable)

    def int64(self, n: int) -> Tensor:
        """Uniform over all 2^64 values of int64, [n]."""
        if n <= 0:
            return torch.empty(0, dtype=torch.int64)
        buffer = bytearray(8 * n + _BLOCK)  # the cipher needs space for one block more
        view, at = memoryview(buffer), 0
        while at < 8 * n:
            at += self._stream.update_into(_ZEROS[: 8 * n - at], view[at:])
        return torch.frombuffer(buffer, dtype=torch.int64, count=n)

    def uniform(self, n: int) -> Tensor:
        """Uniform in the open interval (0, 1), float64 [n]: one of the 2^52 odd multiples of 2^-53."""
        return self.int64(n).bitwise_and_(2**53 - 1).bitwise_or_(1).to(torch.float64).mul_(2.0**-53)

    def bernoulli(self, n: int, p: float) -> Tensor:
        """True with probability ``p`` (rounded to a multiple of 2^-52), bool [n]."""
        return self.uniform(n) < p

    def normal(self, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, [n], by Box and Muller's transform in float64: sqrt(-2 ln u) (cos, sin)(2 pi v).

        No magnitude exceeds 8.6 (u is not below 2^-53; the normal has 1e-17 beyond). The results are rounded floats,
        not the reals that proofs speak of, and their low bits can reveal the number they are added to (Mironov 2012);
        `discrete_gaussian` has no such bits.
        """
        half = (n + 1) // 2
        radius = self.uniform(half).log_().mul_(-2).sqrt_()
        angle = self.uniform(half).mul_(2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:n].to(dtype)


def _text(purpose: str, path: tuple[int, ...]) -> str:
    """The arguments as text, a different text for different arguments: the length marks the end of the purpose."""
    return "/".join([f"{len(purpose)}:{purpose}", *(str(int(p)) for p in path)])
