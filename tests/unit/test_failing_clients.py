"""fedddp.aggregation: a client that fails costs its own contribution, not the round."""

import math

import pytest
import torch
from support import REDUCES, D, aggregated, opened, rows, send

from fedddp.comm import CommError
from fedddp.interrupt import Interrupted


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
    assert "client 2 failed and is left out: its update exceeds 5.86694e+36" in logged[0]


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
