"""Describe what a run released about its units by segments: which cost more, epsilon at several deltas, zCDP."""

from collections.abc import Iterable

import numpy as np

from .accounting import Accountant, Composition, Segment, epsilon
from .budget import worst

DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12)
"""The deltas of a curve."""


def covered(segment: Segment, by: Iterable[Segment]) -> bool:
    """Whether one of ``by`` costs at least as much at every delta: no larger sigma, no smaller rate, no fewer steps."""
    sigma, q, steps = segment
    return any(other[0] <= sigma and other[1] >= q and other[2] >= steps for other in by)


def merged(first: Composition, second: Composition) -> Composition:
    """The segments of both that no segment of the other covers: together they cost any unit at least as much."""
    return (*(segment for segment in first if not covered(segment, second)), *second)


def curve(composition: Composition, accountant: Accountant = "prv") -> dict[str, float]:
    """Epsilon at each of `DELTAS`, for the unit that one run cost most.

    Each pair bounds the same release, so all of them hold at once: which one to quote is the reader's choice.
    """
    sigma = min((s for s, _, _ in composition), default=1.0)
    q, steps = np.array([q for _, q, _ in composition]), np.array([n for _, _, n in composition], dtype=np.int64)

    def at(delta: float) -> float:
        def cost(rate: float, taken: int, by: Accountant = accountant) -> float:
            return epsilon(sigma, rate, taken, delta, by)

        return worst(q, steps, cost)

    return {f"{delta:g}": at(delta) for delta in DELTAS}


def zcdp(composition: Composition) -> float | None:
    """The smallest rho of rho-zCDP: k / (2 sigma^2) for k Gaussian mechanisms; None with sampling, or without noise.

    A mechanism is rho-zCDP if its Renyi divergence of every order a > 1 is at most rho a (Bun and Steinke 2016). The
    divergence of a Gaussian with noise sigma and sensitivity 1 is a / (2 sigma^2), and divergences add up. With Poisson
    samples of rate q a step's is at least a / (2 sigma^2) - log(1/q) a / (a - 1), so that the smallest rho would be the
    one without any sampling: it does not describe the mechanism.
    """
    taken = [segment for segment in composition if segment[1] and segment[2]]
    if any(q < 1 or sigma == 0 for sigma, q, _ in taken):
        return None
    return max((steps / (2 * sigma**2) for sigma, _, steps in taken), default=0.0)
