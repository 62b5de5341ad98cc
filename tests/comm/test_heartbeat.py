"""What a rank's note in the store says of it, and what not."""

import pytest

from fedddp.comm import interrupt
from fedddp.comm.heartbeat import Notes


class Held(dict):
    """A store in memory."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)


@pytest.fixture
def notes():
    return Notes(Held(), 0, 1, 60.0, lambda key, value, purpose: None)


def test_notes_do_not_tell_how_many_steps_a_rank_has_made(notes):
    """Under client-level privacy that would tell which of its clients were drawn."""

    def told(steps):
        store = Held()
        notes = Notes(store, 0, 1, 60.0, lambda key, value, purpose: None)
        notes.enter("train in round 1")
        for _ in range(steps):
            interrupt.check()
        notes.enter("aggregate")
        return store["at/0"]

    assert told(0) == told(1000)


def test_a_note_that_is_renewed_is_another_one(notes):
    notes.enter("train in round 1")
    notes.reached, mine = 1, notes._read(0)
    notes.enter("train in round 1")
    assert notes._read(0) != mine
    assert notes._read(0)[0] == 1
