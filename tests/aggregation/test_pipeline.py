"""fedddp.aggregation: clients' updates become one weighted mean."""

import math
from fractions import Fraction

import pytest
import torch

from fedddp.aggregation import DriftTally, ExactSum, FastSum, Pipeline
from fedddp.algorithms import FedAvg
from fedddp.comm import Comm
from fedddp.types import Cohort, LocalResult, Update
from tests.helpers.support import REDUCES, SIZES, D, aggregated, flat, opened, result, rows


def reference(updates, clients=range(6)):
    """The weighted mean in rational arithmetic, rounded once."""
    total = sum(int(SIZES[k]) for k in clients)
    sums = [sum(Fraction(float(updates[k, i])) * int(SIZES[k]) for k in clients) for i in range(D)]
    return torch.tensor([float(s / total) for s in sums], dtype=torch.float64)


def test_fast_mean_is_the_weighted_mean_to_float32_rounding():
    """Seven roundings of 2^-24 relative to the largest term, which is below 400."""
    mean, _ = aggregated(REDUCES["fast"](), rows())
    assert mean.vectors["delta"].dtype == torch.float32
    assert (mean.vectors["delta"].double() - reference(rows())).abs().max() < 400 * 7 * 2**-24
    assert (mean.weight, mean.count) == (58, 6)


def test_exact_mean_is_within_its_documented_error():
    """m q / (2 sum n) with q = 2^(ceil(log2(4096 * 58)) - 51), before the rounding of the quotient."""
    updates = rows(dtype=torch.float64)
    mean, _ = aggregated(REDUCES["exact"](), updates, w=torch.zeros(D, dtype=torch.float64))
    quantum = 2.0 ** (math.ceil(math.log2(4096 * 58)) - 51)
    error = (mean.vectors["delta"] - reference(updates)).abs().max()
    assert error <= 6 * quantum / (2 * 58) + 100 * 2**-53 < 1e-10


@pytest.mark.parametrize("near", [None, 4096.0, -4096.0])
def test_exact_mean_has_the_same_bits_in_any_order_and_fast_has_not(near):
    """In float64, where no rounding of the quotient hides the sum's last bits; small numbers, and ones at the bound."""
    exact, fast = ExactSum("cpu"), FastSum(torch.float64, "cpu")
    updates, w = rows(dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    if near is not None:
        updates = near - updates.abs().clamp(max=1).copysign(torch.tensor(near))
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(s)).tolist() for s in range(8)]
    for reduce, alike in ((exact, True), (fast, False)):
        means = [aggregated(reduce, updates, order, w=w)[0].vectors["delta"] for order in orders]
        assert all(torch.equal(mean, means[0]) for mean in means) == alike


def test_exact_is_exact_at_its_bound():
    """Every client at +-2^12 with every weight: the sum still fits, the mean is the number itself."""
    for value in (4096.0, -4096.0, 4096 - 2.0**-11):
        mean, report = aggregated(REDUCES["exact"](), torch.full((6, D), value))
        assert not report.failed
        assert set(mean.vectors["delta"].tolist()) == {value}


@pytest.mark.parametrize("name", REDUCES)
def test_several_clients_at_once_count_like_one_after_another(name):
    inbox = opened(REDUCES[name]())
    many = LocalResult(
        torch.zeros(D), torch.zeros(6, D), torch.ones(6), torch.arange(6.0).double(), torch.arange(6.0).double() / 8
    )
    inbox.add(tuple(range(6)), Update({"delta": rows()}, SIZES), many)
    together, report = inbox.mean()
    apart, report_apart = aggregated(REDUCES[name](), rows())
    tolerance = 0 if name == "exact" else 400 * 7 * 2**-24
    assert (together.vectors["delta"] - apart.vectors["delta"]).abs().max() <= tolerance
    assert report.loss.tolist() == report_apart.loss.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", REDUCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_are_not_changed_by_summing(name, dtype):
    updates = rows(dtype=dtype)
    aggregated(FastSum(dtype, "cpu") if name == "fast" else ExactSum("cpu"), updates, w=torch.zeros(D, dtype=dtype))
    assert torch.equal(updates, rows(dtype=dtype))


@pytest.mark.parametrize("name", REDUCES)
def test_a_second_round_starts_from_zero(name):
    reduce = REDUCES[name]()
    first, _ = aggregated(reduce, rows(1))
    again, report = aggregated(reduce, rows(), ids=(1, 4), order=(1, 4))
    expected, _ = aggregated(REDUCES[name](), rows(), ids=(1, 4), order=(1, 4))
    assert torch.equal(again.vectors["delta"], expected.vectors["delta"])
    assert (again.weight, report.loss.tolist()) == (6, [1, 4])
    assert first.weight == 58


def test_several_vectors_come_back_by_name():
    inbox = opened(REDUCES["fast"](), ids=(0, 2), layout={"delta": 3, "control": 2})
    for client, delta, control in ((0, [1.0, 2.0, 3.0], [4.0, 5.0]), (2, [3.0, 4.0, 5.0], [6.0, 9.0])):
        vectors = {"delta": torch.tensor([delta]), "control": torch.tensor([control])}
        inbox.add((client,), Update(vectors, torch.tensor([1])), result())
    mean, _ = inbox.mean()
    assert {name: v.tolist() for name, v in mean.vectors.items()} == {"delta": [2, 3, 4], "control": [5, 7]}


def test_the_report_follows_the_cohort():
    _, report = aggregated(REDUCES["fast"](), rows(), ids=(1, 3, 4), order=(4, 1))
    assert report.loss[[0, 2]].tolist() == [1, 4]
    assert report.accuracy[[0, 2]].tolist() == [0.125, 0.5]
    assert report.loss[1].isnan()
    assert report.accuracy[1].isnan()
    assert report.failed == (3,)
    assert report.examples.tolist() == [1, 12, 5]
    assert len(report.seconds_train) == 1
    assert report.seconds_train[0] >= 0


def test_the_mean_is_made_in_the_memory_of_the_sum_and_a_later_round_leaves_it(monkeypatch):
    """A large model's round holds the sum once, and whoever keeps a mean keeps its numbers."""
    monkeypatch.setattr("fedddp.aggregation.tally.AT_ONCE", 2)
    monkeypatch.setattr("fedddp.aggregation.pipeline.AT_ONCE", 2)
    reduce = FastSum(torch.float32, "cpu")
    pipeline = Pipeline({"delta": 5}, reduce, torch.tensor([1, 3]), Comm.alone(), tally=DriftTally)
    server = FedAvg().init_server(torch.arange(5.0), flat(5))

    def round(t, *values):
        inbox = pipeline.open(Cohort(t, (0, 1), 2), server)
        for k, value in enumerate(values):
            one = torch.ones(1, dtype=torch.float64)
            update = Update({"delta": torch.full((1, 5), value)}, one * (1 + 2 * k))
            inbox.add((k,), update, LocalResult(server.w, update.vectors["delta"], one.long(), one, one))
        return inbox.mean()

    mean, report = round(0, 1.0, 5.0)
    assert mean.vectors["delta"].data_ptr() == reduce._buffer.data_ptr()
    assert report.update_norm == pytest.approx(4 * 5**0.5)
    assert report.update_cosine == pytest.approx(1)
    round(1, 7.0, 7.0)
    assert mean.vectors["delta"].tolist() == [4.0] * 5
    moved = FedAvg().server_update(server, mean, Cohort(0, (0, 1), 2))
    assert moved.w.tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]
    assert mean.vectors["delta"].tolist() == [4.0] * 5
    assert server.w.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
