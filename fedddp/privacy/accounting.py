"""Compute epsilon at a given delta for repeated Gaussian noise on Poisson samples.

One step draws every unit (an example or a client) with probability q, sums what they contribute, each clipped to
length C, and adds N(0, sigma^2 C^2). Data sets that differ by one unit added or removed are neighbours. There are two
accountants, both on opacus' formulas, both giving upper bounds, "prv" the smaller of the two:
- "rdp": Renyi divergences of the sampled Gaussian (Mironov, Talwar, Zhang 2019), converted by Balle et al. 2020.
- "prv": the privacy loss itself, discretized and convolved by FFT (Gopi, Lee, Wutschitz 2021); tighter. Without
  sampling (q = 1) the exact epsilon of the Gaussian mechanism (Balle and Wang 2018).
Neither holds for batches that are shuffled or of fixed size: at sigma 2, 100 steps, delta 1e-5, Poisson samples of
q = 0.1 cost 2.34, and 100 of 1000, where one example is replaced by another, 5.38.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import numpy as np

log = logging.getLogger("fedddp")

Accountant = Literal["prv", "rdp"]
Segment = tuple[float, float, int]
"""(sigma, q, steps): so many steps alike."""
Composition = tuple[Segment, ...]
"""What a run released about one unit (an example, a client): one of these segments, which one depends on the unit."""

WHOLE = (*range(2, 64), *(64, 80, 96, 128, 192, 256, 384, 512))
BETWEEN = (*(1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.75, 1.9), *(2 + x / 5 for x in range(1, 15)), 5.5, 6.5)
"""Renyi orders: the best is near 1 for large epsilons, in the hundreds for small ones. Their series may take seconds
where they are not whole, so that those are asked for beside the best whole one only."""
FINEST_ERROR = 0.005  # of a PRV epsilon; relative, where it is below 1
LARGEST_GRID = 2**20  # points: beyond, the error grows instead of the time


def epsilon(sigma: float, q: float, steps: int, delta: float, accountant: Accountant = "prv") -> float:
    """Epsilon after ``steps`` alike; infinite without noise. Raises ValueError for what cannot be."""
    return compose([(sigma, q, steps)], delta, accountant)


def compose(history: Sequence[Segment], delta: float, accountant: Accountant = "prv") -> float:
    """Epsilon of several segments one after another, in any order. Raises ValueError, also where opacus is missing."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, not {delta:g}")
    merged: dict[tuple[float, float], int] = {}
    for sigma, q, steps in history:
        if sigma < 0 or not 0 <= q <= 1 or steps < 0:
            raise ValueError(f"no such mechanism: sigma {sigma:g}, q {q:g}, {steps} steps")
        if q and steps:
            merged[sigma, q] = merged.get((sigma, q), 0) + steps
    if any(sigma == 0 for sigma, _ in merged):
        return math.inf
    if not merged:
        return 0.0
    return _composed(tuple(sorted((sigma, q, steps) for (sigma, q), steps in merged.items())), delta, accountant)


def compose_runs(runs: Sequence[Composition], delta: float, accountant: Accountant = "prv") -> float:
    """Epsilon of runs one after another, for the unit that they cost most, whichever segment of each run is its own.

    The smaller of two upper bounds. The first is `compose` of the largest rate and steps of each run. The second adds
    Renyi divergences: at each order those of adaptive mechanisms add up, whatever their sigmas and rates (Mironov 2017,
    Proposition 1), so the largest of each run bound every unit's sum. Where each run has one segment, the first is
    exact composition, and the second is no better.
    """
    runs = [taken for run in runs if (taken := tuple(s for s in run if s[1] and s[2]))]
    widest = [(min(s[0] for s in run), max(s[1] for s in run), max(s[2] for s in run)) for run in runs]
    spent = compose(widest, delta, accountant)
    return spent if math.isinf(spent) or not runs else min(spent, _renyi_epsilon(runs, delta))


@lru_cache(maxsize=4096)
def _composed(history: tuple[Segment, ...], delta: float, accountant: Accountant) -> float:
    if accountant == "rdp":
        return _renyi_epsilon(_alone(history), delta)
    if all(q == 1 for _, q, _ in history):
        return _gaussian_epsilon(math.sqrt(sum(steps / sigma**2 for sigma, _, steps in history)), delta)
    try:
        return min(_renyi_epsilon(_alone(history), delta), _loss_epsilon(history, delta))  # each is a bound
    except (ArithmeticError, RuntimeError, ValueError) as error:
        log.info("the prv accountant cannot compose %s (%s): epsilon is the rdp accountant's", history, error)
        return _renyi_epsilon(_alone(history), delta)


def rdp(sigma: float, q: float, steps: int, order: float) -> float:
    """The Renyi divergence of ``order`` after ``steps``."""
    with _quiet():
        return steps * float(_opacus().rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))


@lru_cache(maxsize=2**16)
def _divergence(sigma: float, q: float, order: float) -> float:
    """One step's Renyi divergence; infinite where the series does not converge."""
    try:
        value = rdp(sigma, q, 1, order)
    except (ArithmeticError, ValueError):
        return math.inf
    return value if value >= 0 else math.inf


def _alone(history: Sequence[Segment]) -> list[Composition]:
    return [(segment,) for segment in history]


def _renyi_epsilon(runs: Sequence[Composition], delta: float) -> float:
    spent, order = _converted(runs, delta, WHOLE)
    near = [x for x in BETWEEN if abs(x - order) < 1]
    return min(spent, _converted(runs, delta, near)[0]) if near else spent


def _whole_renyi_epsilon(history: tuple[Segment, ...], delta: float) -> tuple[float, float]:
    """Epsilon by whole orders, and the best of them."""
    return _converted(_alone(history), delta, WHOLE)


def _converted(runs: Sequence[Composition], delta: float, orders: Sequence[float]) -> tuple[float, float]:
    total = [sum(max(n * _divergence(sigma, q, order) for sigma, q, n in run) for run in runs) for order in orders]
    with _quiet():
        spent, order = _opacus().rdp.get_privacy_spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(spent)), float(order)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Of the Gaussian mechanism, ``mu`` = sensitivity / sigma: delta = Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu)."""
    _opacus()  # brings scipy
    from scipy.special import log_ndtr

    def exceeds(e: float) -> bool:
        first, second = float(log_ndtr(mu / 2 - e / mu)), e + float(log_ndtr(-mu / 2 - e / mu))
        return first + math.log(max(-math.expm1(min(second - first, 0.0)), 1e-300)) > math.log(delta)

    if not exceeds(0.0):
        return 0.0
    least, most = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1e-9  # the tail bound's epsilon
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (middle, most) if exceeds(middle) else (least, middle)
    return most


def _loss_epsilon(history: tuple[Segment, ...], delta: float) -> float:
    """By the privacy loss's distribution. Its grid suits every number of steps up to the next power of two."""
    prv, slack = _opacus().prv, delta / 1000
    grid = tuple((sigma, q, 1 << (steps - 1).bit_length()) for sigma, q, steps in history)
    error, mesh, size = _grid(grid, delta, slack)
    if error > _whole_renyi_epsilon(history, delta)[0]:
        raise ValueError("the grid would be too coarse")
    spectra = [_spectrum(sigma, q, mesh, size) for sigma, q, _ in history]
    count, powers, shift = 0, 1.0, 0.0
    for (spectrum, shifted), (_, _, steps) in zip(spectra, history, strict=True):
        count, powers, shift = count + steps, powers * spectrum**steps, shift + shifted * steps
    from scipy.fft import irfft

    with _quiet():
        pmf = np.roll(np.asarray(irfft(powers, size)), count - 1 + (size // 2 if count % 2 == 0 else 0))
        domain = _domain(mesh, size).shift_right(shift)
        spent = prv.DiscretePRV(pmf=pmf, domain=domain).compute_epsilon(delta, slack, error)[2]
    if not math.isfinite(spent):
        raise ValueError("its sums overflow")
    return max(0.0, float(spent))


def _grid(history: tuple[Segment, ...], delta: float, slack: float) -> tuple[float, float, int]:
    """Error of epsilon, mesh and number of points: Gopi et al., Theorem 5.5 and Remark 5.6, as opacus chooses them."""
    from scipy.fft import next_fast_len

    count = sum(steps for _, _, steps in history)
    singles = [_whole_renyi_epsilon(((sigma, q, 1),), slack / (8 * count))[0] for sigma, q, _ in history]
    reach = max(_whole_renyi_epsilon(history, slack / 4)[0], *singles) + 3
    root = math.sqrt(count * math.log(12 / slack) / 2)
    wanted = FINEST_ERROR * min(1.0, _whole_renyi_epsilon(history, delta)[0])
    error = max(wanted, 2 * reach * root / LARGEST_GRID)
    mesh = error / root
    half: Any = next_fast_len(math.ceil(reach / mesh) + 1, real=True)
    return error, mesh, 2 * half


@lru_cache(maxsize=16)
def _spectrum(sigma: float, q: float, mesh: float, size: int) -> tuple[np.ndarray, float]:
    """The Fourier transform of one step's discretized loss, and how far its grid was shifted to keep the mean."""
    prv = _opacus().prv
    from scipy.fft import rfft

    with _quiet():
        domain = _domain(mesh, size)
        loss = prv.PoissonSubsampledGaussianPRV(q, sigma)
        discrete = prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    return np.asarray(rfft(discrete.pmf)), discrete.domain.shifts


def _domain(mesh: float, size: int) -> Any:
    """A grid of ``size`` (even) points with zero among them, one more above it than below."""
    half = size // 2 - 1
    return _opacus().prv.Domain(-half * mesh, (half + 1) * mesh, size)


def check_installed() -> None:
    """Raise ValueError, in one line, where no epsilon can be computed: opacus is missing."""
    _opacus()


@lru_cache(maxsize=1)
def _opacus() -> Any:
    """opacus' analysis modules, imported when they are first needed: they take seconds."""
    try:
        with _quiet():
            from opacus.accountants import analysis
            from opacus.accountants.analysis import prv, rdp  # noqa: F401
    except ImportError as error:
        raise ValueError(f"accounting for privacy needs opacus ({error}): pip install 'fedddp[privacy]'") from error
    return analysis


@contextmanager
def _quiet():
    """Without the warnings of numerics that are expected at the ends of a grid."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
