"""Fixed-point sums in a ring: exact, order-free, truncated toward zero, never wrapping below the bound."""

from __future__ import annotations

import math

import pytest
import torch

from fedddp.aggregation import RingSum, in_the_clear
from fedddp.aggregation.ring import _joined, _words, fraction_bits, needed
from fedddp.comm import Comm

ROWS = torch.tensor([[0.5, -0.75, 1 / 3, -1 / 3], [7.9, -8.0, 1e-13, -1e-13]])


def summed(rows, weight, *, bits=64, tail=(), **more):
    comm = Comm.alone()
    ring = RingSum(in_the_clear(comm), "cpu", bits=bits, total_weight=float(weight.sum()), **more)
    ring.open(rows.shape[1], len(tail), 0.0)
    ring.tail[:] = torch.tensor(tail, dtype=torch.float64)
    ring.add(rows, weight)
    return ring, ring.total(comm, 0), ring.tail


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_is_that_of_python_integers_truncated_toward_zero_after_weighting(bits):
    weight = torch.tensor([3, 600])
    ring, total, _ = summed(ROWS, weight, bits=bits)
    f = ring.fraction_bits
    for column in range(ROWS.shape[1]):
        exact = sum(
            math.trunc(int(n) * float(row[column]) * 2**f) for row, n in zip(ROWS, weight.tolist(), strict=True)
        )
        assert total[column] * 2**f == exact


def test_order_and_grouping_of_rows_do_not_matter():
    rows = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    weight = torch.arange(1, 41)
    _, total, _ = summed(rows, weight)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    _, again, _ = summed(rows[order], weight[order])
    assert torch.equal(total, again)
    assert torch.allclose(total, weight.double() @ rows.double(), atol=1e-9)


def test_truncation_never_makes_a_norm_larger():
    rows = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in rows:
        _, total, _ = summed(row[None], torch.tensor([1]), bits=32)
        assert total.norm() <= row.norm()
        assert (total.abs() <= row.abs()).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_the_tail_arrives_as_it_was_also_through_words_of_16_bits(bits):
    tail = (1.0, -2.5, 2.0**24 - 3, 0.0, 123456.789, -1e9)
    _, _, arrived = summed(ROWS, torch.tensor([1, 1]), bits=bits, tail=tail)
    assert arrived.tolist() == pytest.approx(tail, abs=2**-20)
    assert arrived[2] == 2.0**24 - 3


def test_words_can_be_summed_before_they_are_joined():
    x = torch.tensor([5, -7, 2**40 + 1, -(2**50)])
    y = torch.tensor([-6, 7, 2**41, 3])
    assert torch.equal(_joined(_words(x, 4) + _words(y, 4), 4), x + y)
    assert int(_words(x, 4).max()) < 2**16
    assert int(_words(x, 4).min()) >= 0


def test_the_bound_is_the_last_that_fits():
    for bits, bound, weight in [(64, 8.0, 60000.0), (32, 0.9, 6000.0), (64, 2.0**20, 1e6)]:
        f = fraction_bits(bound, weight, bits)
        assert needed(bound, weight, f) < 2 ** (bits - 1)
        assert f == 40 or needed(bound, weight, f + 1) >= 2 ** (bits - 1)
    assert needed(1.0, 3.0, 10) == 3 * 2**10
    assert needed(1.0 + 2**-20, 3.0, 10) == 3 * (2**10 + 1)  # rounded up: one unit above the bound is counted
    assert needed(1.0, 3.0, 10, noise=0.5) == 3 * 2**10 + 2**9


def test_what_does_not_fit_is_refused_with_the_reason():
    assert fraction_bits(8.0, 2**27 - 1, 32) == 1
    with pytest.raises(ValueError, match="do not fit into 32 bits"):
        fraction_bits(8.0, 2**27, 32)


def test_noise_is_added_by_vector_and_in_parts():
    asked = []

    def sampler(n, std):
        asked.append((n, std))
        return torch.full((n,), 7)

    comm = Comm.alone()
    ring = RingSum(in_the_clear(comm), "cpu", total_weight=1.0, noisy_ranks=4)
    ring.open(5, 0, 0.0)
    ring.perturb([(2, 1.0), (2, 0.0), (1, 0.5)], sampler)
    scale = 2.0**ring.fraction_bits
    assert asked == [(2, scale / 2), (1, scale / 4)]  # 1 / sqrt(4)
    assert (ring.total(comm, 0) * scale).tolist() == [7, 7, 0, 0, 7]


def test_noise_is_within_what_its_sampler_takes():
    """A standard deviation of the noise, a twelfth of what bounds it, is at most 2^45 units."""
    for std in (1.0, 50.0, 1e9):
        f = fraction_bits(10.0, 2.0, 64, 12 * std)
        assert 2**40 <= std * 2**f < 2**45
    with pytest.raises(ValueError, match="with noise up to 1e"):
        fraction_bits(1.0, 2.0, 64, 1e30)
