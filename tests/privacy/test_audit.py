"""Lower bounds of epsilon: the published figures, and no more false alarms than promised, computed exactly."""

import math
from fractions import Fraction

import pytest
import torch
from scipy.stats import binom

from fedddp.privacy import Canaries, epsilon
from fedddp.privacy.audit import at_most, one_run, p_value, threshold

DELTAS = (1e-5, 0.01, 0.1, 0.3)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "published"), [(1000, 100, 75, 1e-4, 0.673), (100000, 1510, 1439, 1e-5, 2.675)]
)
def test_the_one_run_bound_is_the_papers(m, r, v, delta, published):
    """Appendix D and Figure 11 of Steinke et al. 2023, as printed: one is rounded, one cut."""
    assert one_run(m, r, v, delta, 0.05) == pytest.approx(published, abs=1e-3)


def test_the_p_value_is_the_corollarys_in_exact_arithmetic():
    m, r, v, delta, q = 20, 9, 7, Fraction(1, 50), Fraction(3, 4)  # q: epsilon = ln 3

    def probability(k):
        return math.comb(r, k) * q**k * (1 - q) ** (r - k)

    tail = sum(probability(k) for k in range(v, r + 1))
    alpha = max(sum(probability(k) for k in range(v - i, v)) / i for i in range(1, v + 1))
    assert p_value(m, r, v, math.log(3), float(delta)) == pytest.approx(float(tail + 2 * m * delta * alpha), rel=1e-12)


def test_randomized_response_is_refuted_as_often_as_promised():
    """It guesses right with probability e^epsilon / (1 + e^epsilon), which is all that epsilon allows."""
    m, true = 200, 1.5
    right = 1 / (1 + math.exp(-true))
    alarms = sum(binom.pmf(v, m, right) for v in range(m + 1) if one_run(m, m, v, 0.0, 0.05) > true)
    assert 0.02 < alarms <= 0.05


@pytest.mark.parametrize(("true", "fpr", "delta"), [(1.0, 0.1, 0.05), (0.0, 0.3, 0.4)])
def test_rates_at_the_limit_are_refuted_as_seldom_as_promised(true, fpr, delta):
    n, tpr = 60, math.exp(true) * fpr + delta
    hits, false = ([binom.pmf(k, n, rate) for k in range(n + 1)] for rate in (tpr, fpr))
    alarms = sum(
        hits[a] * false[b]
        for a in range(n + 1)
        for b in range(n + 1)
        if hits[a] * false[b] > 1e-9 and threshold(a, n, b, n, delta, 0.1) > true
    )
    assert 0 < alarms <= 0.1


def test_the_bound_of_a_rate_is_clopper_and_pearsons():
    assert at_most(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert binom.cdf(7, 50, at_most(7, 50, 0.05)) == pytest.approx(0.05)
    assert at_most(50, 50, 0.05) == 1


def test_bounds_grow_with_what_is_found_and_shrink_with_delta():
    found = [one_run(500, 100, v, 1e-5, 0.05) for v in range(50, 101, 5)]
    assert found == sorted(found)
    assert found[0] == 0 < found[-1]
    assert one_run(500, 100, 95, 1e-3, 0.05) < one_run(500, 100, 95, 1e-5, 0.05)
    rates = [threshold(hits, 100, 10, 100, 0.01, 0.05) for hits in range(10, 101, 10)]
    assert rates == sorted(rates)
    assert threshold(80, 100, 10, 100, 0.3, 0.05) < threshold(80, 100, 10, 100, 0.01, 0.05)


def simulated(seed, sigma, q, steps, m=600, reused=False):
    """The bounds of one audit of a sampled Gaussian mechanism."""
    stream, canaries = torch.Generator().manual_seed(seed), Canaries()
    rows = canaries.add(m, stream)
    for _ in range(steps):
        drawn = canaries.included & (torch.rand(m, generator=stream) < q)
        canaries.see(rows, sigma * torch.randn(m, generator=stream) + drawn, q)
    return canaries.bounds(canaries.scores(), DELTAS, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "q", "steps"), [(1.0, 1.0, 2), (0.8, 0.2, 10)])
def test_the_gaussian_mechanism_is_not_refuted_and_half_its_noise_is(sigma, q, steps):
    claimed = [epsilon(sigma, q, steps, delta) for delta in DELTAS]

    def alarms(actual):
        found = [simulated(seed, actual, q, steps) for seed in range(40)]
        return sum(any(a > b for a, b in zip(bounds, claimed, strict=True)) for bounds in found)

    assert alarms(sigma) <= 2  # of 40, at 5%
    assert alarms(sigma / 2) >= 36


def test_an_observer_of_nothing_finds_nothing():
    canaries = Canaries()
    canaries.add(200, torch.Generator().manual_seed(0))
    assert canaries.bounds(canaries.scores(), DELTAS, 0.05) == [0.0] * 4
