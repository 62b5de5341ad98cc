"""Find the noise multiplier for a target epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .accounting import Accountant, epsilon
from .budget import undominated

SMALLEST_SIGMA = 1 / 16  # less noise protects nothing
LARGEST_SIGMA = 1e6


def calibrate(target: float, q: float, steps: int, delta: float, accountant: Accountant = "prv") -> float:
    """The smallest sigma, to 4 digits and rounded up, with which ``steps`` cost no more than ``target``; at least 1/16.

    Raises ValueError if no sigma up to `LARGEST_SIGMA` does.
    """
    least, most = 0.5, 1.0

    def excess(sigma: float) -> float:
        return math.log(max(epsilon(sigma, q, steps, delta, accountant), 1e-9) / target)

    while excess(most) > 0:
        least, most = most, 2 * most
        if most > LARGEST_SIGMA:
            raise ValueError(
                f"the {accountant} accountant finds no noise multiplier up to {LARGEST_SIGMA:g} that keeps {steps} "
                f"steps at q={q:g} within epsilon {target:g} at delta {delta:g}"
            )
    while least > SMALLEST_SIGMA and excess(least) <= 0:
        least, most = least / 2, least
    if excess(least) <= 0:
        return least
    from scipy.optimize import brentq

    root = float(brentq(lambda x: excess(math.exp(x)), math.log(least), math.log(most), xtol=1e-5))  # pyright: ignore[reportArgumentType]
    digits = 3 - math.floor(root / math.log(10))
    last = math.ceil(math.exp(root) * 10**digits)
    while epsilon(sigma := round(last * 10.0**-digits, digits), q, steps, delta, accountant) > target:
        last += 1
    return sigma


def calibrate_worst(
    target: float, q: Sequence[float], steps: Sequence[int], delta: float, accountant: Accountant = "prv"
) -> float:
    """The smallest sigma, rounded as by `calibrate`, with which no client takes ``steps[k]`` at ``q[k]`` for more.

    0 if none takes a step. Few clients are asked for: a run of them costs no more than its largest q with its largest
    steps.
    """
    front = undominated(np.asarray(q, dtype=np.float64), np.asarray(steps, dtype=np.int64))
    if not front:
        return 0.0
    likely = max(front, key=lambda client: client[0] * math.sqrt(client[1]))
    sigma, runs = calibrate(target, *likely, delta, accountant), [front]
    while runs:
        run = runs.pop()
        if epsilon(sigma, run[0][0], run[-1][1], delta, accountant) <= target:
            continue
        if len(run) == 1:
            sigma = calibrate(target, *run[0], delta, accountant)
        else:
            runs += [run[: len(run) // 2], run[len(run) // 2 :]]
    return sigma
