"""fedddp.aggregation.pipeline: an update that the sum refuses, and the guard that all ranks hold the same model."""

import pytest
import torch

from fedddp.aggregation import ExactSum, FastSum, Pipeline, checksum
from fedddp.comm import Comm, CommError, Place
from fedddp.types import Cohort, LocalResult, ServerState, Update
from tests.helpers.support import flat

SIZES = torch.tensor([2, 6])
RESULT = LocalResult(torch.zeros(3), torch.zeros(1, 3), torch.tensor([1]), torch.zeros(1), torch.zeros(1))
ROWS = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])


class Refusing(FastSum):
    """Cannot add the second client's update."""

    def add(self, rows, weight, ids=()):
        if rows[0, 0] == 5:
            raise ValueError("cannot be added")
        super().add(rows, weight, ids)


def pipeline(comm=None, reduce=None):
    return Pipeline({"delta": 3}, reduce or FastSum(torch.float32, "cpu"), SIZES, comm or Comm.alone())


def inbox_of(p, clients, w=None):
    inbox = p.open(Cohort(8, (0, 1), 2), ServerState(torch.zeros(3) if w is None else w, flat(3)))
    for k in clients:
        with inbox.tolerate([k]):
            inbox.add((k,), Update({"delta": ROWS[k : k + 1]}, SIZES[[k]]), RESULT)
    return inbox


def test_an_update_that_the_sum_refuses_costs_one_client(logged):
    mean, report = inbox_of(pipeline(reduce=Refusing(torch.float32, "cpu")), (0, 1)).mean()
    assert mean.vectors["delta"].tolist() == [1, 2, 3]
    assert (mean.count, mean.weight, report.failed) == (1, 2, (1,))
    assert report.loss.isnan().tolist() == [False, True]
    assert logged == ["round 9: client 1 failed; its update is ignored: ValueError: cannot be added"]


def flipped(w, place, bit):
    """A copy of ``w`` with one bit of one element changed."""
    words = w.clone().view(torch.int32)
    words[place] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
    return words.view(w.dtype)


@pytest.mark.parametrize("bit", range(32))
def test_checksum_notices_every_flipped_bit(bit):
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    changed = flipped(w, 137, bit)
    assert (changed != w).sum() <= 1
    assert checksum(changed) != checksum(w)


def test_checksum_survives_a_sum_in_float32():
    for seed in range(50):
        value = checksum(torch.randn(100, generator=torch.Generator().manual_seed(seed)))
        assert 0 <= value < 2**24
        assert int(torch.tensor(value, dtype=torch.float32)) == value


class OneOfTwo(Comm):
    """Rank ``rank`` of two, without a network: adds what the other rank has sent before it, if anything."""

    def __init__(self, rank, other=None):
        super().__init__(Place(rank, 2), torch.device("cpu"), store=None, timeout=0.0)
        self.other, self.sent = other, []

    def all_reduce(self, x, purpose):
        self.sent.append(x.clone())
        return x.add_(self.other.sent[0]) if self.other else x


def rank_one_sent(make):
    """Rank 0, rank 1 whose buffer is on its way, and the model that rank 1 started from."""
    second, w = OneOfTwo(1), torch.randn(3, generator=torch.Generator().manual_seed(0))
    inbox = inbox_of(pipeline(comm=second, reduce=make()), (1,), w)
    with pytest.raises(CommError, match="the model on rank"):  # nothing came from rank 0 yet
        inbox.mean()
    return OneOfTwo(0, second), second, w


@pytest.mark.parametrize("make", [lambda: FastSum(torch.float32, "cpu"), lambda: ExactSum("cpu")])
def test_two_ranks_need_one_collective(make):
    """Rank 1 trains client 1, rank 0 client 0: rank 0 ends with the mean and everybody's figures."""
    first, second, w = rank_one_sent(make)
    mean, report = inbox_of(pipeline(comm=first, reduce=make()), (0,), w).mean()
    assert mean.vectors["delta"].tolist() == [4, 5, 6]
    assert (mean.count, report.failed, len(report.seconds_train)) == (2, (), 2)
    assert len(first.sent) == len(second.sent) == 1


def test_ranks_that_start_from_different_models_are_noticed():
    first, _, w = rank_one_sent(lambda: FastSum(torch.float32, "cpu"))
    inbox = inbox_of(pipeline(comm=first), (0,), flipped(w, 1, 31))
    with pytest.raises(CommError, match=r"round 9: the model on rank\(s\) \[1\] is not the one on rank 0"):
        inbox.mean()
