"""Injected faults happen once, at their point, in their round, on their rank."""

import pytest
import torch

from fedddp.comm import Comm
from fedddp.comm.faults import VARIABLE, Faults
from fedddp.errors import UsageError


def due(text, rank=0, attempt=0):
    return Faults({VARIABLE: text}, rank, attempt)


@pytest.mark.parametrize("text", ["burn", "kill@rank=one", "kill@rounds=2", "kill@round=-1", "kill@round 2"])
def test_words_that_mean_nothing_are_refused(text):
    with pytest.raises(UsageError, match=VARIABLE):
        due(text)


def test_a_fault_happens_once_in_its_round():
    faults = due("raise@round=2,point=before aggregate")
    faults.reach("train in round 1")
    faults.reach("before aggregate")
    faults.reach("train in round 2")
    faults.reach("evaluate")
    with pytest.raises(RuntimeError, match="injected"):
        faults.reach("before aggregate")
    faults.reach("before aggregate")


def test_a_fault_is_of_one_rank_and_one_attempt():
    for other in (due("raise@rank=1"), due("raise@", attempt=1), due("", rank=1)):
        other.reach("train in round 1")
    with pytest.raises(RuntimeError):
        due("raise@attempt=1,rank=2", rank=2, attempt=1).reach("train in round 1")


def test_what_a_collective_sends_is_altered(monkeypatch):
    monkeypatch.setenv(VARIABLE, "nan@point=before aggregate;huge@point=before evaluate")
    comm = Comm.alone()
    assert comm.all_reduce(torch.zeros(3), "aggregate").isnan().tolist() == [True, False, False]
    assert comm.all_reduce(torch.zeros(3, dtype=torch.int64), "evaluate").tolist() == [0, 0, 0]
