"""What a rank's heartbeat message says of it, and what not."""

import pytest

from fedddp.comm import interrupt
from fedddp.comm.heartbeat import Heartbeat


class Held(dict):
    """A store in memory."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)


def heartbeat(store):
    return Heartbeat(store, 0, 1, 60.0, lambda key, value, purpose: None)


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

    assert message(0) == message(1000) == b"0|2|aggregate"


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
