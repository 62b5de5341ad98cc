"""fedddp.aggregation.rules against updates of any size from as many Byzantine clients as a rule is made for."""

import pytest
import torch

from fedddp.aggregation import CoordinateShards
from fedddp.aggregation.rules import (
    AGGREGATION_RULES,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from fedddp.comm import Comm

M, LENGTH = 10, 50
SCALES = [10.0**e for e in (0, 1, 2, 3, 6, 9, 12, 16, 20, 25, 30)]
CASES = {  # rule, and f: the most of ten clients that it is made for
    "median": (Median(), 4),
    "trimmed_mean": (TrimmedMean(4), 4),
    "krum": (Krum(3), 3),
    "multi_krum": (MultiKrum(3), 3),
    "geometric_median": (GeometricMedian(), 4),
    "geometric_median, 1 iteration": (GeometricMedian(1), 4),
    "geometric_median, 300 iterations": (GeometricMedian(300), 4),
    "centered_clipping": (CenteredClipping(radius=2.0), 4),
    "centered_clipping, without history": (CenteredClipping(radius=2.0, history=False, iterations=40), 4),
    "norm_bound": (NormBound(8.0), 9),
}
SHAPES = {
    "apart": lambda f, stream: torch.randn(f, LENGTH, generator=stream, dtype=torch.float64),
    "together": lambda f, stream: torch.randn(1, LENGTH, generator=stream, dtype=torch.float64).expand(f, LENGTH),
    "opposite": lambda f, stream: (
        torch.ones(f, LENGTH, dtype=torch.float64) * torch.tensor([1.0, -1.0])[torch.arange(f) % 2].unsqueeze(1)
    ),
    "each ten times the one before": lambda f, stream: (
        10.0 ** -torch.arange(f, dtype=torch.float64)[:, None]
        * torch.randn(f, LENGTH, generator=stream, dtype=torch.float64)
    ),
}


def honest(count, seed=0):
    """Around 1 in every coordinate, about 1 from there."""
    stream = torch.Generator().manual_seed(seed)
    return 1 + torch.randn(count, LENGTH, generator=stream, dtype=torch.float64) / LENGTH**0.5


def applied(rule, rows, weights=None, last=None):
    weight = torch.ones(len(rows)) if weights is None else torch.tensor(weights)
    reduce = CoordinateShards(rule, rows.dtype, "cpu", 1)
    reduce.open(rows.shape[1], 1, float(weight.sum()))
    if last is not None:
        reduce.recall(last)
    reduce.add(rows, weight, range(len(rows)))
    return reduce.total(Comm.alone(), 0) / float(weight.sum())


def attacked(f, scale, shape, dtype, count=M):
    """f Byzantine rows among honest ones, first and last and between."""
    byzantine = scale * SHAPES[shape](f, torch.Generator().manual_seed(f))
    rows = torch.cat([honest(count - f), byzantine])
    return rows[torch.randperm(count, generator=torch.Generator().manual_seed(1))].to(dtype)


def test_every_rule_is_tried():
    assert {name.split(",")[0] for name in CASES} | {"mean"} == set(AGGREGATION_RULES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_as_many_as_a_rule_is_made_for_cannot_move_it_however_long_their_updates_are(case, shape, dtype):
    """No further from the honest mean than twice an honest client; the two rules with a bound, no further than that."""
    rule, f = CASES[case]
    alike = honest(M - f)
    spread = float((alike - alike.mean(dim=0)).norm(dim=1).max())
    last = alike.mean(dim=0) + 0.1
    bound = {NormBound: 2 * 8.0, CenteredClipping: 2.0 * f / (M - f) + 0.5 * spread}.get(type(rule), 2 * spread)
    for scale in SCALES:
        found = applied(rule, attacked(f, scale, shape, dtype), last=last)
        assert found.isfinite().all()
        assert float((found - alike.mean(dim=0)).norm()) < bound, scale


def test_the_mean_is_moved():
    """The control."""
    for scale in SCALES[2:]:
        assert float(applied(WeightedMean(), attacked(1, scale, "apart", torch.float32)).norm()) > scale / M


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "weights", [[1.0] * 6 + [1.4] * 4, [1.0, 2, 3, 4, 5, 6] + [5.0] * 4, [20.0] + [1.0] * 5 + [6.0] * 4]
)
def test_the_geometric_median_withstands_less_than_half_of_the_weight(weights, dtype):
    alike, bound = honest(6), 2.0 * float((honest(6) - honest(6).mean(dim=0)).norm(dim=1).max())
    for scale in SCALES:
        rows = torch.cat([alike, scale * torch.ones(4, LENGTH, dtype=torch.float64)]).to(dtype)
        assert float((applied(GeometricMedian(), rows, weights) - alike.mean(dim=0)).norm()) < bound, scale


def test_many_iterations_find_the_geometric_median():
    """Where sum_k a_k (x_k - z) / |x_k - z| = 0; here with weights, and with one of ten at 1e9."""
    rows = torch.cat([honest(9), 1e9 * torch.ones(1, LENGTH, dtype=torch.float64)])
    weights = [float(k) for k in range(1, 10)] + [12.0]
    z = applied(GeometricMedian(500), rows, weights)
    pulls = [w * (x - z) / (x - z).norm() for w, x in zip(weights, rows, strict=True)]
    assert float(sum(pulls).norm()) < 1e-6


@pytest.mark.parametrize(
    ("points", "weights", "expected"),
    [
        ([5.0], [3.0], 5.0),
        ([0.0, 8.0], [9.0, 1.0], 0.0),  # the heavier of two is the median, exactly
        ([0.0, 8.0], [1.0, 9.0], 8.0),
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], 2.0),
        ([1.0, 1.0, 1e20], [1.0, 1.0, 1.0], 1.0),
        ([0.0, 1.0, 1e12], [1.0, 3.0, 1.0], 1.0),
    ],
)
def test_the_geometric_median_of_few(points, weights, expected):
    found = applied(GeometricMedian(), torch.tensor(points, dtype=torch.float64).view(-1, 1), weights)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_centred_clipping_goes_on_from_the_last_result():
    """All honest updates within the radius of the last result: one iteration gives their mean, wherever that is."""
    rows, last = 1e6 + honest(M), torch.full((LENGTH,), 1e6 + 1, dtype=torch.float64)
    rule = CenteredClipping(radius=3.0, iterations=1)
    torch.testing.assert_close(applied(rule, rows, last=last), rows.mean(dim=0), rtol=0, atol=1e-4)
    assert float(applied(CenteredClipping(radius=3.0, iterations=1, history=False), rows, last=last).norm()) < 3.001
