"""What messages give away to those who follow the protocol and keep all they receive; see helpers/transcript.py."""

import contextlib
import itertools

import pytest
import torch

from fedddp.comm import CommError
from fedddp.secure import Identity, Party, RoundAborted, SecureExchange, party, quorum
from fedddp.secure.attempt import digest
from tests.helpers.threaded import Death, World
from tests.helpers.transcript import RING, Recorder, span, vector


def transcript(monkeypatch, n, deaths, count=2, shape=None, of=Party):
    """What was recorded of some rounds, and which of them were not aborted."""
    recorder = Recorder(monkeypatch)

    def body(comm):
        exchange, kept = SecureExchange(comm, Identity.new(), None, b"", party=lambda s: of(s, shape=shape)), set()
        for round in range(count):
            with contextlib.suppress(RoundAborted, CommError):
                exchange.sum_(torch.tensor(vector(comm.rank, round)), round)
                kept.add(round)
        return kept

    return recorder, set.union(*World(n, deaths).run(body).values())


SCENARIOS = [
    # parties, deaths, who is in the sum of round 0 and of round 1
    (4, [], range(4), range(4)),
    (4, [Death(3, "secure shares", "split", 0, [1])], range(3), range(3)),  # an attempt given up half-way
    (4, [Death(3, "aggregate", "before")], range(3), range(3)),  # its vector is known, but in no sum
    (4, [Death(3, "aggregate", "split", 0, [1])], range(4), range(3)),  # the sum is supplied by rank 1
    (4, [Death(2, "secure commit", "split", 0, [0])], range(4), (0, 1, 3)),
    (4, [Death(2, "secure reveal", "split", 0, [3])], range(4), (0, 1, 3)),  # reveals repeated
    (6, [Death(5, "secure shares", "after"), Death(4, "secure status", "before")], range(4), range(4)),
    (6, [Death(5, "aggregate", "before"), Death(4, "aggregate", "split", 1, [2])], range(5), range(4)),
    (7, [Death(5, "secure keys", "after"), Death(6, "aggregate", "after")], (0, 1, 2, 3, 4, 6), range(5)),
]


@pytest.mark.parametrize(("n", "deaths", "first", "second"), SCENARIOS)
def test_nothing_but_the_sum_can_be_subtracted(monkeypatch, n, deaths, first, second):
    """Also with as many parties on its side as may collude, whichever they are."""
    recorder, kept = transcript(monkeypatch, n, deaths)
    assert kept == {0, 1}
    summed = {0: first, 1: second}
    recorder.check(summed)
    for begin in range(n):
        coalition = {(begin + i) % n for i in range(min(quorum(n) - 1, n - 2))}
        recorder.check(summed, coalition)


@pytest.mark.parametrize("also_pairs", [False, True])
def test_with_a_party_s_pairwise_keys_it_succeeds(monkeypatch, also_pairs):
    """The control: the same adversary isolates a party if, and only if, it has both of its masks."""
    recorder, _ = transcript(monkeypatch, 4, [], count=1)
    victim = 2
    learned = recorder.learned(given=[a for a in recorder.attempts if also_pairs and a.rank == victim])
    alone = [value for of, value in learned if set(of) == {(victim, 0)}]
    if also_pairs:
        assert alone[0] == [v % RING for v in vector(victim, 0)]
    else:
        recorder.check({0: range(4)})
        assert not alone


def test_a_coalition_as_large_as_the_threshold_reads_attempts_that_were_given_up(monkeypatch):
    """The control for coalitions: that many restore any seed on their own. The masks between the others still hold."""
    recorder, _ = transcript(monkeypatch, 6, [Death(5, "aggregate", "before")], count=1)
    coalition = set(range(quorum(6)))
    learned = recorder.of_others(recorder.learned(coalition), coalition)
    assert learned == span([{(4, 0): 1}, {(5, 0): 1}])
    recorder.check({0: range(5)}, coalition - {0})


def test_without_a_loss_all_but_two_learn_the_sum_of_these(monkeypatch):
    recorder, _ = transcript(monkeypatch, 6, [], count=1)
    recorder.check({0: range(6)}, {0, 1, 2, 3})


def test_of_an_aborted_round_nothing_is_learned(monkeypatch):
    """One party receives another sum than the others."""
    digests = itertools.count()
    monkeypatch.setattr(party, "digest", lambda total: digest(total + (next(digests) == 1)))
    recorder, kept = transcript(monkeypatch, 4, [])
    assert kept == {1}
    assert {attempt.place.round for attempt, *_ in recorder.vectors} == {0, 1}
    assert {attempt.place.round for attempt, *_ in recorder.revealed} == {1}
    recorder.check({1: range(4)})
    recorder.check({1: range(4)}, {3})


def test_in_a_sparse_graph_too(monkeypatch):
    """Of 36 parties each shares masks with 8; one is lost after it has masked."""
    recorder, kept = transcript(monkeypatch, 36, [Death(7, "secure shares", "after")], 1, shape=(8, 6))
    assert kept == {0}
    assert {len(attempt.neighbours) for attempt in recorder.attempts} == {8}
    recorder.check({0: [rank for rank in range(36) if rank != 7]})


def test_no_key_of_a_mask_serves_twice(monkeypatch):
    """Over rounds and attempts: each masks one vector, or two of one attempt with opposite signs."""
    recorder, _ = transcript(monkeypatch, 4, [Death(3, "secure shares", "split", 1, [1])], count=4)
    seen: dict[bytes, list[tuple[bytes, int]]] = {}
    for attempt, _, used in recorder.vectors:
        for key, sign in used:
            seen.setdefault(key, []).append((attempt.place, sign))
    assert len({attempt.place for attempt, *_ in recorder.vectors}) == 5
    for uses in seen.values():
        assert len({place for place, _ in uses}) == 1
        assert sorted(sign for _, sign in uses) in ([1], [-1], [-1, 1])
