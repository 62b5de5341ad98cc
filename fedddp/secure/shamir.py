"""Shamir's secret sharing (1979): any ``threshold`` shares give the secret, fewer say nothing about it.

    f(x) = secret + a_1 x + ... + a_{t-1} x^{t-1}  over GF(p),  share of x = f(x),
    secret = f(0) = sum_i f(x_i) prod_{j != i} x_j / (x_j - x_i)

Secrets are 32 bytes: a seed of a mask, or a private X25519 key. p = 2^256 + 297 is the first prime that holds them all,
so a share has 33 bytes. The arithmetic is on Python integers and not in constant time: shares are of one-time secrets.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, points: Sequence[int], threshold: int, random_bytes: Callable[[int], bytes] = os.urandom
) -> dict[int, bytes]:
    """A share of 33 bytes for each point. Points are distinct and at least 1: the secret itself stands at 0."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if len(set(points)) != len(points) or not all(0 < x < PRIME for x in points):
        raise ValueError("points are distinct and at least 1")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"a threshold of {threshold} does not fit {len(points)} shares")
    # 48 bytes modulo p: the bias of a coefficient is below 2^-127
    coefficients = [int.from_bytes(random_bytes(48), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.insert(0, int.from_bytes(secret, "big"))
    return {x: _evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from ``threshold`` of the shares (those of the lowest points).

    Raises ValueError for too few shares, for one that is no element of the field, and where the result is not 32 bytes.
    Shares that are wrong in another way give another secret: compare it with something public.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} are needed")
    points = tuple(sorted(shares)[:threshold])
    values = [int.from_bytes(shares[x], "big") for x in points]
    if any(len(shares[x]) != SHARE_BYTES for x in points) or any(value >= PRIME for value in values):
        raise ValueError("a share is not an element of the field")
    secret = sum(c * value for c, value in zip(_at_zero(points), values, strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=256)
def _at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients for f(0)."""
    result = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        result.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(result)
