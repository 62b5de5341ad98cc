"""fedddp.aggregation: clients' updates become one weighted mean."""

import math
from fractions import Fraction

import pytest
import torch

from fedddp.aggregation import ExactSum, FastSum, Pipeline
from fedddp.comm import Comm, CommError
from fedddp.interrupt import Interrupted
from fedddp.types import Cohort, LocalResult, ServerState, Update

D = 40
SIZES = torch.tensor([7, 1, 30, 12, 5, 3])
REDUCES = {"fast": lambda: FastSum(torch.float32, "cpu"), "exact": lambda: ExactSum("cpu")}


def rows(seed=0, dtype=torch.float32):
    """One update a client, of very different sizes, so that the order of a float sum shows."""
    stream = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(-3, 3).view(-1, 1)
    return (torch.randn(len(SIZES), D, generator=stream) * scale).to(dtype)


def result(loss=0.5, accuracy=0.25):
    figures = [torch.tensor([v], dtype=torch.float64) for v in (loss, accuracy)]
    return LocalResult(torch.zeros(1, D), torch.tensor([1]), *figures)


def opened(reduce, *, ids=range(6), comm=None, stages=(), w=None, layout=None):
    pipeline = Pipeline(layout or {"delta": D}, reduce, SIZES, comm or Comm.alone(), stages)
    server = ServerState(torch.zeros(D, dtype=rows().dtype) if w is None else w, D)
    return pipeline.open(Cohort(4, tuple(ids), 6), server)


def send(inbox, client, row, weight=None):
    weight = SIZES[[client]] if weight is None else torch.tensor([weight])
    with inbox.tolerate([client]):
        inbox.add((client,), Update({"delta": row.view(1, -1)}, weight), result(loss=client, accuracy=client / 8))


def aggregated(reduce, updates, order=range(6), **more):
    inbox = opened(reduce, **more)
    for client in order:
        send(inbox, client, updates[client])
    return inbox.mean()


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


def test_exact_mean_has_the_same_bits_in_any_order_and_fast_has_not():
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(s)).tolist() for s in range(8)]
    for name, bits in (("exact", 1), ("fast", 2)):
        means = {aggregated(REDUCES[name](), rows(), order)[0].vectors["delta"].numpy().tobytes() for order in orders}
        assert min(len(means), 2) == bits, name


def test_exact_is_exact_at_its_bound():
    """Every client at +-2^12 with every weight: the sum still fits, the mean is the number itself."""
    for value in (4096.0, -4096.0, 4096 - 2.0**-11):
        mean, report = aggregated(REDUCES["exact"](), torch.full((6, D), value))
        assert not report.failed
        assert set(mean.vectors["delta"].tolist()) == {value}


@pytest.mark.parametrize("name", REDUCES)
def test_several_clients_at_once_count_like_one_after_another(name):
    inbox = opened(REDUCES[name]())
    many = LocalResult(torch.zeros(6, D), torch.ones(6), torch.arange(6.0).double(), torch.arange(6.0).double() / 8)
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


@pytest.mark.parametrize("name", REDUCES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda row: row.index_fill(0, torch.tensor(3), math.nan), "its update is not finite"),
        (lambda row: row.index_fill(0, torch.tensor(3), -math.inf), "its update is not finite"),
        (lambda row: row[:-1], "RuntimeError: "),
    ],
)
def test_a_client_that_fails_costs_its_own_contribution_only(name, bad, reason, logged):
    inbox = opened(REDUCES[name]())
    for client in range(6):
        send(inbox, client, bad(rows()[client]) if client == 2 else rows()[client])
    mean, report = inbox.mean()
    others, _ = aggregated(REDUCES[name](), rows(), order=(0, 1, 3, 4, 5))
    assert torch.equal(mean.vectors["delta"], others.vectors["delta"])
    assert (mean.count, mean.weight, report.failed) == (5, 28, (2,))
    assert report.loss.isnan().tolist() == [False, False, True, False, False, False]
    assert len(logged) == 1
    assert logged[0].startswith(f"round 5: client 2 failed and is left out: {reason}")


def test_exceptions_of_a_client_are_tolerated_and_those_of_the_run_are_not(logged):
    inbox = opened(REDUCES["fast"](), ids=(0, 1))

    def fail(error):
        with inbox.tolerate((1,)):
            raise error

    fail(ZeroDivisionError("of its own"))
    assert logged == ["round 5: client 1 failed and is left out: ZeroDivisionError: of its own"]
    for error in (CommError("lost"), Interrupted("SIGTERM")):
        with pytest.raises(type(error)):
            fail(error)
    send(inbox, 0, rows()[0])
    assert inbox.mean()[1].failed == (1,)


def test_exact_leaves_out_what_is_too_large_for_it(logged):
    updates = rows()
    updates[3, 5] = 4097
    mean, report = aggregated(REDUCES["exact"](), updates)
    assert report.failed == (3,)
    assert mean.count == 5
    assert "client 3 failed and is left out: its update exceeds 4096" in logged[0]


def test_fast_leaves_out_what_would_overflow_the_sum(logged):
    """3e38 is a float32, 30 times 3e38 is not: one client must not make the model infinite for all."""
    updates = rows()
    updates[2, 5] = 3e38
    mean, report = aggregated(REDUCES["fast"](), updates)
    assert report.failed == (2,)
    assert mean.vectors["delta"].isfinite().all()
    assert "client 2 failed and is left out: its update exceeds 5.8669e+36" in logged[0]


@pytest.mark.parametrize("weight", [-1, 31, math.nan])
def test_a_weight_that_is_not_its_own_is_left_out(weight, logged):
    """A client may weigh as much as its examples, not more: the exact sum's range is made for that."""
    inbox = opened(REDUCES["fast"](), ids=(0, 2))
    send(inbox, 0, rows()[0])
    send(inbox, 2, rows()[2], weight)
    mean, report = inbox.mean()
    assert report.failed == (2,)
    assert torch.allclose(mean.vectors["delta"], rows()[0])
    assert logged == [
        f"round 5: client 2 failed and is left out: its weight {weight:g} is not between 0 and its number of examples"
    ]


@pytest.mark.parametrize("name", REDUCES)
def test_when_all_fail_nothing_counts(name, logged):
    mean, report = aggregated(REDUCES[name](), torch.full((6, D), math.nan))
    assert (mean.count, mean.weight) == (0, 0)
    assert report.failed == tuple(range(6))
    assert mean.vectors["delta"].tolist() == [0] * D
    assert len(logged) == 6


def test_clients_without_examples_make_no_mean():
    inbox = opened(REDUCES["fast"](), ids=(0,))
    send(inbox, 0, rows()[0], weight=0)
    mean, report = inbox.mean()
    assert (mean.count, report.failed) == (0, ())
    assert mean.vectors["delta"].isfinite().all()
