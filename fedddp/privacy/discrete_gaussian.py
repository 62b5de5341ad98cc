"""Draw integer noise, P(x) ~ exp(-x^2 / (2 sigma^2)), which a ring adds without rounding.

Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", Algorithms 2 and 3: propose from the
discrete Laplace distribution of scale t = floor(sigma) + 1, accept with exp(-(|y| - sigma^2 / t)^2 / (2 sigma^2)). The
proposal is +-(u + t v), u uniform below t and kept with exp(-u / t), v geometric. Noise of this kind gives the
concentrated differential privacy of the continuous normal (their Theorem 4); a sum of several parties' draws is within
a vanishing distance of one discrete Gaussian (Kairouz, Liu, Steinke 2021) where every draw's sigma is well above 1.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from .randomness import Randomness

SMALLEST, LARGEST = 0.5, 2.0**45
_AT_ONCE = 1 << 16  # proposals whose intermediate results stay in a core's cache
_YIELD = 0.46  # of the proposals that are accepted: 0.48 for a large sigma, more for a small one
_WORDS = 2.0**63


def discrete_gaussian(n: int, sigma: float, randomness: Randomness) -> Tensor:
    """``n`` independent draws, int64 [n], for ``sigma`` (in units of the ring) between 0.5 and 2^45.

    Exact, by comparison of whole numbers: u is uniform below t, the sign is fair, zero is drawn once. Approximated: v
    compares 63 random bits with e^-v to the nearest of 2^-63 (v >= 43 never comes: a tail of 2^-62), and acceptance
    compares 63 random bits with a probability computed in float64, right to a relative 2^-47. The probability of an
    outcome is off by that factor and by 2^-57 in total, so a million draws by a factor of 1 + 2^-27 and by 2^-37. The
    time taken depends on the draws (rejection), as that of every sampler of this kind. Raises ValueError for another
    ``sigma``.
    """
    if not SMALLEST <= sigma <= LARGEST:
        raise ValueError(f"the noise has a standard deviation of {sigma:g} units: it must be between 0.5 and 2^45")
    out = torch.empty(n, dtype=torch.int64)
    filled = 0
    while filled < n:
        drawn = _proposals(min(_AT_ONCE, int((n - filled) / _YIELD) + 16), sigma, randomness)
        taken = drawn[: n - filled]
        out[filled : filled + len(taken)] = taken
        filled += len(taken)
    return out


def _proposals(n: int, sigma: float, randomness: Randomness) -> Tensor:
    """Those of ``n`` proposals that were accepted, in order."""
    t = math.floor(sigma) + 1
    word = randomness.int64(n)
    negative = word < 0
    word.bitwise_and_(2**63 - 1)
    fair = word <= 2**63 // t * t - 1  # what is above would make the lowest remainders likelier
    u = word.remainder_(t)
    v = torch.bucketize(randomness.int64(n).bitwise_and_(2**63 - 1), _TAILS, right=True).neg_().add_(len(_TAILS))
    size = v.mul_(t).add_(u)
    excess = size.to(torch.float64).sub_(sigma * sigma / t).square_().div_(2 * sigma * sigma)
    chance = excess.add_(u, alpha=1 / t).neg_().exp_().mul_(_WORDS)  # both rejections in one
    accepted = randomness.int64(n).bitwise_and_(2**63 - 1) < chance
    accepted &= fair & ~(negative & (size == 0))
    return torch.where(negative, -size, size)[accepted]


def _tails() -> Tensor:
    """2^63 P(v >= j) = 2^63 e^-j for j = 43, ..., 1, rounded: v counts the bounds that a random word is below."""
    with localcontext() as context:
        context.prec = 60
        return torch.tensor([int((Decimal(-j).exp() * 2**63).to_integral_value()) for j in range(43, 0, -1)])


_TAILS = _tails()
