"""Requests to stop: signals and the death of the launcher."""

import os
import signal
import time

import pytest

from fedddp.comm import CommError, interrupt
from fedddp.comm.interrupt import Interrupted
from tests.helpers.waiting import until


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


def requested():
    try:
        interrupt.check()
    except Interrupted as request:
        return str(request)
    return None


@pytest.mark.parametrize("number", interrupt.REQUESTS)
def test_each_signal_that_asks_to_stop_is_a_request(number):
    before = signal.getsignal(number)
    with interrupt.handled():
        os.kill(os.getpid(), number)
        until(requested)
        assert requested() == number.name
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert requested() is None
            assert signal.SIGHUP not in interrupt.asked_by()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def exits(monkeypatch):
    """The exit codes with which this process would have ended, without a safe point 0.1 s after a request."""
    codes: list[int] = []
    monkeypatch.setattr(interrupt, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_a_process_without_a_safe_point_writes_its_end_before_it_is_ended(exits):
    ends = []
    with interrupt.handled(), interrupt.ending(ends.append):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: exits)
    assert exits == [75]
    (error,) = ends
    assert isinstance(error, Interrupted)
    assert str(error) == "SIGTERM; this rank reached no safe point within 0.1 s"


def test_an_end_happens_once_and_is_not_cut_short(exits):
    ends = []

    def slowly(error):
        time.sleep(0.5)
        ends.append(error)

    def stopped():
        with interrupt.handled(), interrupt.ending(slowly):
            os.kill(os.getpid(), signal.SIGTERM)
            until(requested)
            interrupt.check()

    with pytest.raises(Interrupted):
        stopped()
    assert len(ends) == 1
    assert exits == []


def test_an_end_that_hangs_does_not_keep_the_process(exits, monkeypatch):
    monkeypatch.setattr(interrupt, "LAST", 0.1)
    with interrupt.handled(), interrupt.ending(lambda error: time.sleep(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: exits, seconds=0.8)
    assert exits == [75]


def test_a_request_of_an_earlier_block_does_not_end_a_later_one(monkeypatch):
    """Both in one process, as in a notebook: the time to a safe point is over when the second block trains."""
    ended = []
    monkeypatch.setattr(interrupt, "GRACE", 0.3)
    monkeypatch.setattr(interrupt.os, "_exit", ended.append)
    with interrupt.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(Interrupted):
            interrupt.check()
    with interrupt.handled():
        time.sleep(1)
    assert ended == []
