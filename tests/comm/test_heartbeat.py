"""What a rank's heartbeat message says of it, and what not."""

import pytest

from fedddp.comm import LostRank, interrupt
from fedddp.comm import heartbeat as module
from fedddp.comm.heartbeat import Heartbeat


class Held(dict):
    """A store in memory."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)


def heartbeat(store, world_size=1, timeout=60.0):
    return Heartbeat(store, 0, world_size, timeout, lambda key, value, purpose: None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on while somebody sleeps."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    monkeypatch.setattr(module, "time", Clock())
    return module.time


def test_a_message_does_not_say_how_many_steps_a_rank_has_made():
    """Under client-level privacy that would tell which of its clients were drawn."""

    def message(steps):
        store = Held()
        beat = heartbeat(store)
        beat.enter("train in round 1")
        for _ in range(steps):
            interrupt.check()
        beat.enter("aggregate")
        return store["at/0"]

    assert message(0) == message(1000) == b"0|00000002|aggregate"


def test_a_message_that_is_renewed_is_another_one():
    beat = heartbeat(Held())
    beat.enter("train in round 1")
    beat.reached, before = 1, beat.read(0)
    beat.enter("train in round 1")
    assert beat.read(0) != before
    assert beat.read(0)[0] == 1


@pytest.mark.parametrize("end", [Heartbeat.close, lambda beat: None])
def test_nothing_is_written_after_the_end(end):
    store = Held()
    beat = heartbeat(store)
    end(beat)
    beat.enter("late")
    assert ("at/0" in store) == (end is not Heartbeat.close)


def waiting(store):
    beat = heartbeat(store, world_size=2, timeout=3.0)
    beat.reached = 1
    beat.enter("aggregate")
    return beat


def test_a_rank_without_progress_is_waited_for_as_long_as_the_timeout(clock):
    with pytest.raises(LostRank, match="aggregate: waited 3 s; rank 1 is missing, last seen in 'train in round 1'"):
        waiting(Held({"at/1": b"0|7|train in round 1"})).wait(lambda: False, "aggregate")
    assert 3 <= clock.now < 3.5  # the pause for the others' last messages is in it


def test_a_rank_that_makes_progress_is_waited_for_as_long_as_it_takes(clock):
    store = Held()

    def completed():
        store.set("at/1", f"0|{clock.now:.0f}|train in round 1")
        return clock.now > 30

    waiting(store).wait(completed, "aggregate")
    assert clock.now > 30


def written(clock, works, *, discreet, steps_last=0.0):
    """What a rank writes to the store that works so long in a round of 40 s, with the time; and what is accounted for.

    ``steps_last``: seconds from one safe point of its work to the next.
    """
    store, accounted, found = Held(), [], []
    beat = Heartbeat(store, 0, 2, 60.0, lambda key, value, purpose: accounted.append((len(key + value), purpose)))
    beat.discreet = discreet
    store.set = lambda key, value: found.append((clock.now, key, value))
    due = [(works, lambda: beat.join("aggregate")), (40, beat.joined), (40, lambda: beat.work("evaluate"))]
    due.append((50, beat.close))
    clock.now = 0.0
    beat.work("train in round 1")

    def sleep(seconds):
        end = clock.now + seconds
        while due and due[0][0] <= end:
            clock.now, act = due.pop(0)
            act()
        clock.now = end
        if not steps_last or end > works or end % steps_last < seconds:
            interrupt.check()

    clock.sleep = sleep
    beat._renew()
    return found, accounted


@pytest.mark.parametrize("steps_last", [0.0, 15.0])
def test_a_discreet_rank_writes_the_same_whether_it_works_or_waits(clock, steps_last):
    """What the store shows of a drawn client; the control, a rank that is not discreet, shows that it can be seen."""
    idle, busy = (written(clock, works, discreet=True, steps_last=steps_last) for works in (0.5, 38.5))
    assert idle == busy
    assert len(idle[0]) == 2 + 50 / 2 - 1  # all that is renewed, of which the ledger has nothing
    assert len(idle[1]) == 2
    told = [written(clock, works, discreet=False, steps_last=steps_last) for works in (0.5, 38.5)]
    assert told[0][0] != told[1][0]
    assert len(told[0][1]) > 20


def test_who_is_missing_is_known_though_nobody_told_that_it_came(clock):
    """Rank 1 waits as this rank does, and renews its message; rank 2 is gone."""
    store = Held({"at/1": b"0|7|train in round 1", "at/2": b"0|7|train in round 1"})
    beat = heartbeat(store, world_size=3)
    beat.discreet = True
    beat.work("train in round 1")
    beat.join("aggregate")
    assert beat.read(0)[0] == 0
    sleep = clock.sleep
    clock.sleep = lambda seconds: (sleep(seconds), store.set("at/1", f"0|{clock.now}|train in round 1"))
    assert beat.diagnosis() == "rank 2 is missing, last seen in 'train in round 1'"
    assert beat.read(0)[0] == 1
