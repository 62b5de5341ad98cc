"""Requests to stop: signals and the death of the launcher."""

import os

import pytest

from fedddp.comm import CommError, interrupt
from fedddp.comm.interrupt import Interrupted


@pytest.fixture
def orphaned(monkeypatch):
    """A rank whose launcher is dead, and whose watching thread has not yet seen it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(interrupt, "_watch_launcher", lambda: None)
    with interrupt.handled():
        parent = os.getppid()
        monkeypatch.setattr(os, "getppid", lambda: parent + 1)
        yield


def test_a_rank_whose_launcher_died_stops_at_the_next_safe_point(orphaned):
    with pytest.raises(Interrupted, match=interrupt.ORPHANED):
        interrupt.check()


def test_what_the_launcher_took_along_is_no_fault(orphaned):
    """Its store is gone, and other ranks may have left before this one."""
    with pytest.raises(Interrupted), interrupt.explaining(CommError):
        raise CommError("the launcher's store is gone")


@pytest.mark.parametrize("error", [CommError("rank 1 is missing"), ValueError("a mistake")])
def test_a_fault_stays_one_where_nobody_asked_to_stop(error):
    with pytest.raises(type(error)), interrupt.handled(), interrupt.explaining(CommError):
        raise error
