"""Parties that die at each step: the sum of a known set, or an aborted round; the same on all that are left."""

import itertools
import random

import pytest
import torch

from fedddp.comm import CommError
from fedddp.secure import Identity, RoundAborted, SecureExchange, quorum
from fedddp.secure.attempt import Attempt
from tests.helpers.threaded import Death, World

pytestmark = pytest.mark.slow

LENGTH = 50
STEPS = ("secure keys", "secure shares", "aggregate", "secure commit", "secure reveal")


def vector(rank, round, dtype=torch.int64):
    """Some of a rank's numbers are as large as the ring, the others small."""
    drawn = random.Random(1000 * round + rank)
    bits = torch.iinfo(dtype).bits
    numbers = [drawn.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for _ in range(LENGTH // 2)]
    return torch.tensor(numbers + [drawn.randrange(-9, 10) for _ in range(LENGTH - LENGTH // 2)], dtype=dtype)


def reference(ranks, round, dtype=torch.int64):
    """The ring's sum in Python's integers."""
    bits = torch.iinfo(dtype).bits
    columns = zip(*(vector(rank, round, dtype).tolist() for rank in ranks), strict=True)
    return [(sum(column) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for column in columns]


def rounds(comm, count=2, dtype=torch.int64):
    """What a rank gets from each round: numbers, or the reason why there are none."""
    exchange = SecureExchange(comm, Identity.new(), None, b"configuration")
    told = []
    for round in range(count):
        try:
            told.append(exchange.sum_(vector(comm.rank, round, dtype), round).tolist())
        except RoundAborted as reason:
            told.append(str(reason))
        except CommError as reason:
            told.append(f"CommError: {reason}")
    return told


def outcome(results, round):
    """The outcome that all survivors share."""
    told = [result[round] for result in results.values()]
    assert all(isinstance(one, str) == isinstance(told[0], str) for one in told), told
    if not isinstance(told[0], str):
        assert all(one == told[0] for one in told)
    return told[0]


@pytest.mark.parametrize("how", ["before", "after", "split"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [3, 4, 6, 9])
def test_a_third_dies_at_a_step(n, step, how):
    """Whoever has put its vector into a sum that somebody received is in it; nobody else is, and nothing is aborted."""
    gone = range(n - n // 3, n)
    left = [rank for rank in range(n) if rank not in gone]
    deaths = [Death(rank, step, how, reach=left[::2]) for rank in gone]
    world = World(n, deaths)
    results = world.run(rounds)
    assert sorted(results) == left
    in_it = STEPS.index(step) > 2 or (step == "aggregate" and how != "before")
    summed = range(n) if in_it else left
    if len(summed) >= 3:
        assert outcome(results, 0) == reference(summed, 0)
    else:
        assert "3 are needed" in outcome(results, 0)
    if len(left) >= 3:
        assert outcome(results, 1) == reference(left, 1)
    else:  # of two, each would learn the other's
        assert "3 are needed" in outcome(results, 1)


@pytest.mark.parametrize("seed", range(25))
def test_parties_die_anywhere(seed):
    """Up to a third die, anywhere in two rounds and in the recovery from the others' deaths."""
    drawn = random.Random(seed)
    n = drawn.choice([4, 6, 9])
    gone = drawn.sample(range(1, n), drawn.randint(1, n // 3))
    left = [rank for rank in range(n) if rank not in gone]
    deaths = []
    for rank in gone:
        purpose = drawn.choice([*STEPS, "aggregate", "secure status"])
        reach = drawn.sample(left, drawn.randrange(1, len(left)))
        deaths.append(Death(rank, purpose, drawn.choice(["before", "after", "split"]), drawn.randrange(3), reach))
    world = World(n, deaths)
    results = world.run(lambda comm: rounds(comm, 4))
    survivors = sorted(results)
    assert set(survivors) >= set(left)
    possible = [
        (*survivors, *more)
        for k in range(n)
        for more in itertools.combinations(sorted(set(range(n)) - set(survivors)), k)
    ]
    for round in range(4):
        told = outcome(results, round)
        assert isinstance(told, str) or any(told == reference(summed, round) for summed in possible)
    assert outcome(results, 3) == reference(survivors, 3)  # no round of these deaths is the fourth


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [4, 6, 9])
def test_more_than_a_third_die(n, step):
    """Too few shares are left: nobody learns anything, and everybody is told the same."""
    gone = range(n - n // 3 - 1, n)
    results = World(n, [Death(rank, step, "before") for rank in gone]).run(rounds)
    assert sorted(results) == [rank for rank in range(n) if rank not in gone]
    assert f"{quorum(n)} are needed" in outcome(results, 0)
    assert "CommError: " in outcome(results, 1)


def test_without_rank_0_the_others_end():
    def body(comm):
        with pytest.raises(CommError, match="rank 0 is gone"):
            rounds_or_error(comm)

    def rounds_or_error(comm):
        SecureExchange(comm, Identity.new(), None, b"").sum_(vector(comm.rank, 0), 0)

    assert sorted(World(4, [Death(0, "secure commit", "before")]).run(body)) == [1, 2, 3]


@pytest.mark.parametrize("step", STEPS[:4])
@pytest.mark.parametrize("n", [3, 5])
def test_a_message_altered_on_its_way_to_one_party_burns_the_round_on_all(n, step, monkeypatch):
    revealed = []
    monkeypatch.setattr(Attempt, "reveal", lambda *_: revealed.append(_) or b"")

    def tamper(purpose, rank, total):
        if purpose == step and rank == 1 and not done:
            done.append(rank)
            total.view(-1)[total.numel() // 2] += 1

    done: list[int] = []
    results = World(n, tamper=tamper).run(lambda comm: rounds(comm, 1))
    assert isinstance(outcome(results, 0), str)
    assert sorted(results) == list(range(n))
    assert not revealed or step == "secure commit"


def test_the_round_after_an_aborted_one_is_summed():
    def tamper(purpose, rank, total):
        if purpose == "aggregate" and rank == 2 and not done:
            done.append(rank)
            total[7] -= 1

    done: list[int] = []
    results = World(3, tamper=tamper).run(rounds)
    assert "has another sum" in outcome(results, 0)
    assert outcome(results, 1) == reference(range(3), 1)
