"""Who is left after a loss, as ranks decide it through a store that anybody can write to."""

import itertools
import threading

import pytest

from fedddp.comm import CommError
from fedddp.comm.heartbeat import Heartbeat
from fedddp.comm.membership import Membership
from tests.helpers.coalition import sessions_of

GRACE = 0.5


class Watched(dict):
    """A store in memory; ``meddle(store, key)`` is called after each write of a rank."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle, self.lock = meddle, threading.RLock()

    def set(self, key, value):
        with self.lock:
            self[key] = value.encode()
            self.meddle(self, key)

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]


def decided(alive, meddle=lambda store, key: None, signed=True):
    """What the ranks ``alive`` of four decide, or why they end; rank 3's heartbeat has stopped."""
    store, told, sessions = Watched(meddle), {}, sessions_of(4)

    def life(rank):
        beat = Heartbeat(store, rank, 4, 2.0, lambda *_: None)
        membership = Membership(beat)
        if signed:
            membership.signer = sessions[rank]
        beat.reached = 7 + rank
        beat.renew()
        try:
            told[rank] = membership.agree(GRACE), beat.reached
        except CommError as reason:
            told[rank] = str(reason)
        finished[rank].set()
        everybody.wait(20)  # alive until all have decided
        beat.close()

    finished = {rank: threading.Event() for rank in alive}
    everybody = threading.Event()
    threads = [threading.Thread(target=life, args=(rank,)) for rank in alive]
    for thread in threads:
        thread.start()
    for event in finished.values():
        assert event.wait(20), "a rank hangs"
    everybody.set()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("signed", [True, False])
def test_whoever_asks_is_left(signed):
    assert decided((0, 1, 2), signed=signed) == dict.fromkeys(range(3), ((0, 1, 2), 9))


def stranger(*entries):
    """Writes entries without a key, once, as soon as somebody asks to regroup."""

    left = list(entries)

    def meddle(store, key):
        while key == "regroup/0" and left:
            name, text = left.pop()
            store[name] = text.encode()

    return meddle


EVICTION = ("regroup/0/members", '{"0": "7|", "1": "8|"}|')


def test_a_stranger_does_not_decide_who_is_left():
    assert decided((0, 1, 2), stranger(EVICTION)) == dict.fromkeys(range(3), ((0, 1, 2), 9))


def test_without_keys_a_stranger_does():
    """The control, and what docs say of runs without a roster."""
    told = decided((0, 1, 2), stranger(EVICTION), signed=False)
    assert told[2] == "regroup: rank 2 went without progress for too long; ranks [0, 1] continue without it"


@pytest.mark.parametrize("text", ["12|", "12|00", "12", "", "|", "\0|zz"])
def test_a_stranger_asks_for_nobody_and_overwrites_nothing(text):
    """Neither for the rank that is lost, nor in the place of one that has asked."""
    told = decided((0, 1, 2), stranger(("regroup/0/3", text), ("regroup/0/1", text), ("regroup/0/0", text)))
    assert told == dict.fromkeys(range(3), ((0, 1, 2), 9))


def test_what_one_rank_or_another_epoch_has_signed_does_not_serve_for_another():
    """Of entries as they stand in the store, each is believed in its own place only."""
    sessions = sessions_of(3)
    ranks = [Membership(Heartbeat(Watched(lambda *_: None), rank, 3, 2.0, lambda *_: None)) for rank in range(3)]
    for rank, membership in enumerate(ranks):
        membership.signer = sessions[rank]
    keys = [f"regroup/{epoch}/{end}" for epoch in (0, 1) for end in ("0", "1", "2", "members")]
    for (key, signer), (place, rank) in itertools.product(itertools.product(keys, range(3)), repeat=2):
        entry = ranks[signer]._sealed(key, "5")
        expected = "5" if (key, signer) == (place, rank) else None
        assert ranks[0]._opened(place, rank, entry) == expected
