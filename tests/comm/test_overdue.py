"""fedddp.comm.overdue: ranks that do not end after another one has."""

import os
import signal

import pytest

from fedddp.comm import overdue
from tests.helpers.waiting import until


@pytest.fixture
def world(monkeypatch):
    """The children of this process as `overdue` sees them, by their state, and the signals that they are sent."""
    children: dict[int, str] = {}
    monkeypatch.setattr(overdue, "_children", lambda: dict(children))
    monkeypatch.setattr(overdue, "PATIENCE", 0.2)
    monkeypatch.setattr(overdue, "EVERY", 0.02)
    monkeypatch.setattr(os, "kill", lambda *sent: children.pop(sent[0]) and signals.append(sent))
    signals: list[tuple[int, int]] = []
    return children, signals


def test_a_stopped_rank_is_killed_and_one_that_is_busy_is_named_once(world, logged):
    children, signals = world
    with overdue.watched(3):
        children |= {11: "S", 12: "R", 13: "T"}
        assert not _within(0.4, lambda: signals)  # all at work, whatever they do
        del children[11]
        until(lambda: signals and len(logged) == 2, seconds=5)
        until(lambda: overdue._children() == {12: "R"})
    assert signals == [(13, signal.SIGKILL)]
    assert sorted(line.split(",")[0] for line in logged) == ["process 12", "process 13"]


def test_ranks_that_start_again_or_end_in_time_are_left_alone(world, logged):
    children, signals = world
    with overdue.watched(2):
        children |= {11: "S", 12: "S"}
        assert not _within(0.4, lambda: logged)
        for pid in (21, 31):  # attempts after a restart: all are gone for less than the patience
            children.clear()
            children |= {pid: "S", pid + 1: "T"}
            assert not _within(0.4, lambda: logged)
        children.clear()
        assert not _within(0.4, lambda: logged)
    assert signals == []


def _within(seconds, condition):
    try:
        until(condition, seconds=seconds)
    except AssertionError:
        return False
    return True
