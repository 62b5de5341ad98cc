"""Whole-number noise has the distribution that the proofs are about."""

import math

import numpy as np
import pytest
import torch

from fedddp.privacy import Randomness, discrete_gaussian
from fedddp.privacy.discrete_gaussian import _TAILS

N = 200_000


def draw(n, sigma, *path):
    return discrete_gaussian(n, sigma, Randomness.seeded(3, "test", *path))


def exact(sigma):
    """Outcomes and their probabilities, far into the tail."""
    reach = math.ceil(12 * sigma) + 1
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    return x, p / p.sum()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7, 5.0, 20.3])
def test_small_noise_has_the_exact_probabilities(sigma):
    drawn = draw(N, sigma, int(sigma * 10))
    x, p = exact(sigma)
    observed = np.bincount((drawn - int(x[0])).numpy(), minlength=len(x))
    likely = N * p >= 8
    chi_square = ((observed - N * p)[likely] ** 2 / (N * p)[likely]).sum()
    degrees = likely.sum() - 1
    assert abs(chi_square - degrees) < 4.5 * math.sqrt(2 * degrees)
    assert observed[~likely].sum() <= N * p[~likely].sum() + 5 * math.sqrt(N * p[~likely].sum()) + 3
    variance = (p * x**2).sum()
    assert abs(float(drawn.double().square().mean()) / variance - 1) < 4 * math.sqrt(2 / N) / min(1, sigma)


@pytest.mark.parametrize("sigma", [1000.5, 2.0**30, 2.0**45])
def test_large_noise_is_normal(sigma):
    drawn = draw(N, sigma).double() / sigma
    expected = torch.special.ndtr(drawn.sort().values)
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = float(torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max()))
    assert distance * math.sqrt(N) < 1.95
    assert abs(float(drawn.square().mean()) - 1) < 4 * math.sqrt(2 / N)
    assert float(drawn.abs().max()) > 4


def test_the_lowest_bits_of_large_noise_are_uniform():
    """Rounded floats would have zeros there: float64 has 53 bits, and those of a tail are few."""
    low = (draw(N, 2.0**45) & 15).numpy()
    counts = np.bincount(low, minlength=16)
    assert ((counts - N / 16) ** 2 / (N / 16)).sum() < 45  # 15 degrees of freedom


def test_shares_add_up():
    """What ranks add in the ring is as much noise as was promised."""
    shares = sum(draw(N, 50 / math.sqrt(8), rank) for rank in range(8))
    assert abs(float(torch.as_tensor(shares).double().square().mean()) / 2500 - 1) < 4 * math.sqrt(2 / N)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_number_of_draws(n):
    drawn = draw(n, 4.0)
    assert (drawn.shape, drawn.dtype) == ((n,), torch.int64)


def test_streams_repeat_and_differ():
    assert torch.equal(draw(100, 9.0, 1), draw(100, 9.0, 1))
    assert not torch.equal(draw(100, 9.0, 1), draw(100, 9.0, 2))


@pytest.mark.parametrize("sigma", [0.0, 0.4, -1.0, 2.0**46, math.inf, math.nan])
def test_noise_that_the_sampler_cannot_make_is_refused(sigma):
    with pytest.raises(ValueError, match=r"between 0.5 and 2\^45"):
        draw(1, sigma)


def test_the_geometric_bounds_are_powers_of_e():
    assert [round(int(t) / 2**63, 15) for t in _TAILS[-3:]] == [round(math.exp(-j), 15) for j in (3, 2, 1)]
    assert (len(_TAILS), int(_TAILS[0])) == (43, 2)
