"""Epsilon is right: published vectors, closed forms, an integral, and opacus itself."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch

from fedddp.privacy import accounting, calibrate, calibrate_worst, compose, epsilon
from fedddp.privacy.accounting import rdp

pytestmark = pytest.mark.slow

pytest.importorskip("opacus")

DELTA = 1e-5
VECTORS = [  # q, sigma, steps, RDP, PRV (with opacus' error of 0.01)
    (1, 1, 100, 96.116, 91.830),
    (1, 4, 100, 14.132, 13.217),
    (0.01, 1, 1000, 2.101, 1.838),
    (0.01, 1, 10_000, 6.713, 6.198),
    (0.1, 1, 100, 7.899, 7.057),
    (256 / 60_000, 1.1, 3515, 1.281, 1.144),
]


@pytest.mark.parametrize(("q", "sigma", "steps", "renyi", "loss"), VECTORS)
def test_published_epsilons(q, sigma, steps, renyi, loss):
    assert epsilon(sigma, q, steps, DELTA, "rdp") == pytest.approx(renyi, rel=0.01)
    assert epsilon(sigma, q, steps, DELTA, "prv") == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize(
    ("sigma", "steps", "e"), [(1, 100, 91.817289625), (4, 100, 13.206712240), (20, 50, 1.356467364)]
)
def test_without_sampling_epsilon_is_exact(sigma, steps, e):
    assert epsilon(sigma, 1, steps, DELTA) == pytest.approx(e, rel=1e-9)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "order", "d"), [(0.5, 4, 200, 4, 6.606862), (0.1, 1, 100, 3.5, 4.272449)]
)
def test_renyi_divergences_are_the_integral(q, sigma, steps, order, d):
    """E over N(0, sigma^2) of the density ratio's power, by the trapezoidal rule."""
    x = np.linspace(-30 * sigma, 40 * sigma, 400_001)
    ratio = np.log1p(-q) + np.logaddexp(0, math.log(q / (1 - q)) + (2 * x - 1) / (2 * sigma**2))
    density = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    integral = steps * math.log(np.trapezoid(density * np.exp(order * ratio), x)) / (order - 1)
    assert rdp(sigma, q, steps, order) == pytest.approx(integral, rel=1e-6)
    assert rdp(sigma, q, steps, order) == pytest.approx(d, rel=1e-6)


@pytest.mark.parametrize(("target", "sigma"), [(8, 0.9359), (2, 2.2477)])
def test_calibration(target, sigma):
    found = calibrate(target, 0.1, 100, DELTA)
    assert found == pytest.approx(sigma, rel=0.005)
    assert epsilon(found, 0.1, 100, DELTA) <= target < epsilon(found * 0.999, 0.1, 100, DELTA)


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "delta"), [(0.3, 1e-6, 10**6, 1e-12), (0.3, 1e-6, 10**6, 1e-9), (0.6, 0.1, 100, 1e-5)]
)
def test_the_tighter_accountant_never_says_more(sigma, q, steps, delta):
    """Rare samples with little noise and a tiny delta: the grid of prv is coarse, and orders below 2 are the best."""
    assert epsilon(sigma, q, steps, delta, "prv") <= epsilon(sigma, q, steps, delta, "rdp")


def test_calibration_rounds_up_and_never_exceeds():
    for target in (0.5, 3.0, 40.0):
        found = calibrate(target, 0.02, 500, DELTA, "rdp")
        assert epsilon(found, 0.02, 500, DELTA, "rdp") <= target
        assert found == float(f"{found:.4g}")


def test_no_noise_is_enough_for_nothing():
    with pytest.raises(
        ValueError, match=r"no noise multiplier up to 1e\+06 that keeps 100 steps at q=1 within epsilon 1e-06"
    ):
        calibrate(1e-6, 1, 100, 1e-15, "rdp")


def test_calibration_for_the_client_that_is_worst():
    """Small clients are drawn from often, large ones take many steps: the worst is in between here."""
    q, steps = [0.3, 0.2, 0.01, 0.25], [4, 60, 100, 30]
    found = calibrate_worst(2.0, q, steps, DELTA, "rdp")
    spent = [epsilon(found, *client, DELTA, "rdp") for client in zip(q, steps, strict=True)]
    alone = [calibrate(2.0, *client, DELTA, "rdp") for client in zip(q, steps, strict=True)]
    assert max(spent) <= 2.0
    assert found == max(alone) > alone[0]
    assert calibrate_worst(2.0, [0.5], [0], DELTA) == 0.0


def test_segments_compose_as_opacus_composes_them():
    from opacus.accountants import PRVAccountant

    history = [(1.0, 0.1, 50), (4.0, 1.0, 10), (0.8, 0.01, 1000)]
    reference = PRVAccountant()
    reference.history = history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.get_epsilon(DELTA, eps_error=0.005)
    assert compose(history, DELTA) == pytest.approx(expected, abs=0.005)
    assert compose(history[::-1], DELTA) == compose(history, DELTA) < compose(history, DELTA, "rdp")


def test_equal_segments_are_one():
    assert compose([(1, 0.1, 30), (2, 0.5, 0), (1, 0.1, 70)], DELTA) == epsilon(1, 0.1, 100, DELTA)


def test_the_loss_distribution_agrees_with_the_exact_epsilon():
    """An upper bound within its stated error, also at small deltas; without sampling the exact one is known."""
    for sigma, steps, delta in ((5.0, 30, 1e-5), (20.0, 50, 1e-10), (1.0, 3, 1e-8)):
        bound, exact = accounting._loss_epsilon(((sigma, 1.0, steps),), delta), epsilon(sigma, 1, steps, delta)
        assert exact < bound < exact + 1.1 * accounting.FINEST_ERROR


def test_more_steps_more_sampling_and_less_noise_cost_more():
    for accountant in ("prv", "rdp"):
        spent = [epsilon(1.2, 0.05, steps, DELTA, accountant) for steps in (1, 2, 63, 64, 65, 100)]
        assert spent == sorted(spent)
        assert len(set(spent)) == len(spent)
        assert epsilon(1.2, 0.06, 100, DELTA, accountant) > spent[-1] > epsilon(1.3, 0.05, 100, DELTA, accountant)


def test_where_the_loss_distribution_fails_the_renyi_bound_is_given():
    """Epsilons in the thousands overflow the sums of the one and not the other."""
    assert epsilon(0.5, 0.3, 5000, DELTA) == epsilon(0.5, 0.3, 5000, DELTA, "rdp") > 1000


def test_ends():
    assert epsilon(0, 0.1, 1, DELTA) == math.inf
    assert epsilon(1, 0.1, 0, DELTA) == epsilon(1, 0, 100, DELTA) == compose([], DELTA) == 0.0
    for mistake in ((-1, 0.1, 1), (1, 1.1, 1), (1, 0.1, -1)):
        with pytest.raises(ValueError, match="no such mechanism"):
            epsilon(*mistake, DELTA)
    for delta in (0, 1):
        with pytest.raises(ValueError, match="delta must be between 0 and 1"):
            epsilon(1, 0.1, 1, delta)


def numpy_state():
    return repr(np.random.get_state(legacy=False)["state"]["key"].tobytes())  # pyright: ignore


def test_no_warning_and_no_global_random_number():
    torch_before, numpy_before = torch.get_rng_state(), numpy_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon(0.7, 0.03, 20, DELTA), epsilon(0.7, 0.03, 20, DELTA, "rdp")
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert numpy_state() == numpy_before


def test_without_opacus_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    accounting._opacus.cache_clear()
    accounting._composed.cache_clear()
    with pytest.raises(ValueError, match=r"needs opacus .*: pip install 'fedddp\[privacy\]'"):
        epsilon(1.234, 0.1, 10, DELTA)
    monkeypatch.undo()
    accounting._opacus.cache_clear()
    assert epsilon(1.234, 0.1, 10, DELTA) > 0
