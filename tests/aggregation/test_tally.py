"""What a round reports besides its mean: by client, in sums, counted, or nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fedddp.aggregation import ClientTally, CountTally, DriftTally, ExactSum, FastSum, Pipeline, SilentTally, SumTally
from fedddp.comm import Comm
from fedddp.flat import FlatSpec
from fedddp.types import Cohort, LocalResult, ServerState, Update

COHORT = Cohort(0, (2, 5, 9), 10)
EXAMPLES = torch.tensor([10, 20, 30])
SPEC = FlatSpec.of(nn.Linear(2, 1))


def result(loss, accuracy):
    k = len(loss)
    return LocalResult(torch.zeros(1), torch.zeros(k, 1), torch.ones(k), torch.tensor(loss), torch.tensor(accuracy))


def reported(kind):
    """Two ranks' tallies, summed: rank 0 trained clients 9 and 2, rank 1 client 5, which failed."""
    parts = []
    for rank in range(2):
        tally = kind(COHORT, EXAMPLES, 2)
        slots = torch.zeros(tally.size, dtype=torch.float64)
        tally.bind(slots)
        if rank == 0:
            tally.add([9, 2], result([0.5, 1.5], [0.75, 0.25]))
        tally.close(3.0 + rank, rank, {})
        parts.append((tally, slots))
    total = parts[0][1] + parts[1][1]
    parts[0][1].copy_(total)
    return parts[0][0].report(), total


def test_by_client():
    (count, report), _ = reported(ClientTally)
    assert (count, report.failures, report.failed, report.trained_on) == (2, 1, (5,), 40)
    assert report.loss.tolist()[::2] == [1.5, 0.5]
    assert report.train_loss == pytest.approx((10 * 1.5 + 30 * 0.5) / 40)
    assert report.seconds_train == (3.0, 4.0)
    assert set(report.per_client) == {"train_loss", "examples"}


def test_in_sums_the_means_are_the_same_and_no_client_can_be_identified():
    (count, report), slots = reported(SumTally)
    assert (count, report.failures, report.trained_on) == (2, 1, 40)
    assert report.train_loss == pytest.approx((10 * 1.5 + 30 * 0.5) / 40)
    assert report.train_accuracy == pytest.approx((10 * 0.25 + 30 * 0.75) / 40)
    assert report.per_client == {}
    assert slots.tolist() == [2, 40, 10 * 1.5 + 30 * 0.5, 10 * 0.25 + 30 * 0.75, 3, 4]


def test_counted_nothing_computed_from_examples_is_reported():
    (count, report), slots = reported(CountTally)
    assert (count, report.failures, report.trained_on) == (2, 1, 40)
    assert (report.train_loss, report.train_accuracy) == (None, None)
    assert slots.tolist() == [2, 40, 3, 4]


def test_silent_nothing_leaves_the_rank():
    (count, report), slots = reported(SilentTally)
    assert len(slots) == 0
    assert (count, report.failures, report.trained_on, report.train_loss) == (None, None, None, None)
    assert report.seconds_train == ()


def test_an_aborted_round_is_a_failure_of_all_but_silent_where_the_cohort_is_secret():
    def aborted(kind):
        tally = kind(COHORT, EXAMPLES, 2)
        tally.bind(torch.zeros(tally.size, dtype=torch.float64))
        tally.close(4.0, 1, {})
        return tally.aborted()

    for kind in (ClientTally, CountTally, SumTally):
        report = aborted(kind)
        assert (report.failures, report.trained_on, report.seconds_train) == (3, 0, (4.0,))
    report = aborted(SilentTally)
    assert (report.failures, report.trained_on, report.seconds_train) == (None, None, ())


@pytest.mark.parametrize("reduce", [FastSum(torch.float32, "cpu"), ExactSum("cpu")])
def test_drift_is_the_mean_cosine_over_pairs_and_the_mean_length(reduce):
    rows = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, -2.0], [0.5, 0.5, 0.5]])
    pipeline = Pipeline({"delta": 3}, reduce, EXAMPLES, Comm.alone(), tally=DriftTally)
    inbox = pipeline.open(Cohort(0, (0, 1, 2), 3), ServerState(torch.zeros(3), SPEC))
    weight = EXAMPLES.double()
    for k in range(3):
        inbox.add([k], Update({"delta": rows[k : k + 1]}, weight[k : k + 1]), result([0.5], [0.5]))
    _, report = inbox.mean()
    pairs = list(itertools.combinations(range(3), 2))
    lengths = weight * rows.double().norm(dim=1)
    shares = torch.stack([lengths[j] * lengths[k] for j, k in pairs])
    cosines = torch.stack([torch.cosine_similarity(rows[j], rows[k], dim=0) for j, k in pairs]).double()
    assert report.update_cosine == pytest.approx(float((shares * cosines).sum() / shares.sum()), abs=1e-6)
    assert report.update_norm == pytest.approx(float(lengths.sum() / weight.sum()), rel=1e-6)


def test_one_client_drifts_from_nobody():
    pipeline = Pipeline({"delta": 3}, FastSum(torch.float32, "cpu"), EXAMPLES, Comm.alone(), tally=DriftTally)
    inbox = pipeline.open(Cohort(0, (1,), 3), ServerState(torch.zeros(3), SPEC))
    inbox.add([1], Update({"delta": torch.ones(1, 3)}, torch.tensor([20.0])), result([0.5], [0.5]))
    _, report = inbox.mean()
    assert (report.update_cosine, report.update_norm) == (None, pytest.approx(3**0.5))
