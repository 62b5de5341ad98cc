"""fedddp.secure: the masked sum is the ring's sum, bit for bit, and nothing else passes between the parties."""

import hashlib
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedddp.secure import Identity, Party, RoundAborted, SecureExchange
from fedddp.secure.attempt import Attempt
from tests.helpers.threaded import Death, World

N, LENGTH = 4, 20_000


def stream(*path):
    """Bytes that a test can repeat."""
    count = itertools.count()
    return lambda n: hashlib.shake_256(repr((path, next(count))).encode()).digest(n)


def exchange_of(comm, seed=0):
    identity = Identity.new(stream("identity", comm.rank))
    return SecureExchange(comm, identity, None, b"config", random_bytes=stream(seed, comm.rank))


def recorded(monkeypatch):
    """All masked vectors, as (rank, bytes)."""
    vectors = []
    mask = Attempt.mask

    def recording(attempt, y):
        masked = mask(attempt, y)
        vectors.append((attempt.rank, masked.numpy().tobytes()))
        return masked

    monkeypatch.setattr(Attempt, "mask", recording)
    return vectors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_the_masked_sum_is_the_sum_in_the_ring(n, dtype):
    """Over several rounds, where some ranks have nothing to give; compared with torch's sum and Python's integers."""
    bits = torch.iinfo(dtype).bits

    def vector(rank, round):
        if (rank + round) % 3 == 0:
            return [0] * 50
        return [
            random.Random(f"{rank} {round} {at}").randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for at in range(50)
        ]

    def body(comm):
        exchange, results = exchange_of(comm), []
        for round in (0, 1, 5):
            buffer = torch.tensor(vector(comm.rank, round), dtype=dtype)
            plain = comm.all_reduce(buffer.clone(), "plain")
            total = exchange.sum_(buffer, round)
            assert total.data_ptr() == buffer.data_ptr()
            results.append((torch.equal(total, plain), total.tolist()))
        return results

    for told in World(n).run(body).values():
        for round, (equal, total) in zip((0, 1, 5), told, strict=True):
            columns = zip(*(vector(rank, round) for rank in range(n)), strict=True)
            assert equal
            assert [v % 2**bits for v in total] == [sum(column) % 2**bits for column in columns]


def updates(rank):
    """Small numbers in fixed point, as a trained model's updates are."""
    return (torch.from_numpy(np.random.default_rng(rank).normal(0, 1e-2, LENGTH)) * 2**40).to(torch.int64)


INPUTS = {
    "zeros": lambda rank: torch.zeros(LENGTH, dtype=torch.int64),
    "ones": lambda rank: torch.ones(LENGTH, dtype=torch.int64),
    "updates": updates,
}


def chi_square(data):
    """The p-value of uniform byte values (255 degrees of freedom)."""
    counts = torch.bincount(torch.frombuffer(bytearray(data), dtype=torch.uint8).long(), minlength=256).double()
    mean = counts.mean()
    statistic = ((counts - mean) ** 2 / mean).sum()
    return float(torch.special.gammaincc(torch.tensor(127.5, dtype=torch.float64), statistic / 2))


@pytest.mark.parametrize("what", INPUTS)
def test_masked_vectors_look_uniform_by_byte(monkeypatch, what):
    vectors = recorded(monkeypatch)
    World(N).run(lambda comm: exchange_of(comm, what).sum_(INPUTS[what](comm.rank), 0))
    assert sorted(rank for rank, _ in vectors) == list(range(N))
    for rank, masked in vectors:
        assert 1e-4 < chi_square(masked) < 1 - 1e-4
        assert chi_square(INPUTS[what](rank).numpy().tobytes()) < 1e-4  # the test can see what is not uniform
        plain = torch.frombuffer(bytearray(masked), dtype=torch.int64) - INPUTS[what](rank)
        assert 1e-4 < chi_square(plain.numpy().tobytes()) < 1 - 1e-4


def views(shift):
    """All that each rank receives in a session of two rounds, in which rank 1 has ``shift`` more and rank 2 less."""
    received = {rank: [] for rank in range(N)}

    def listen(purpose, rank, total):
        received[rank].append((purpose, total.numpy().tobytes()))

    def body(comm):
        exchange = exchange_of(comm)
        for round in range(2):
            exchange.sum_(updates(comm.rank) + shift * {1: 1, 2: -1}.get(comm.rank, 0), round)

    World(N, tamper=listen).run(body)
    return received


def test_what_two_parties_shift_between_them_no_third_party_sees(monkeypatch):
    """The same keys, and data that differ by d and by -d: every message that anybody receives is the same."""
    vectors = recorded(monkeypatch)
    before, after = views(0), views(12345)
    assert before == after
    assert [purpose for purpose, _ in before[3][2:7]] == [
        "secure keys", "secure shares", "aggregate", "secure commit", "secure reveal",
    ]  # fmt: skip
    by_rank = [
        {rank: {masked for r, masked in half if r == rank} for rank in range(N)} for half in (vectors[:8], vectors[8:])
    ]
    assert [by_rank[0][rank] == by_rank[1][rank] for rank in range(N)] == [True, False, False, True]


def test_masks_never_repeat(monkeypatch):
    """Of zeros, a masked vector is its masks: no 16 bytes of them occur twice in any round of any party."""
    vectors = recorded(monkeypatch)

    def body(comm):
        exchange = exchange_of(comm)
        for round in range(5):
            exchange.sum_(torch.zeros(200, dtype=torch.int64), round)

    World(N).run(body)
    blocks = [masked[at : at + 16] for _, masked in vectors for at in range(0, len(masked), 16)]
    assert len(vectors) == 5 * N
    assert len(set(blocks)) == len(blocks)


def test_global_random_states_are_left_alone():
    """And a session does not depend on them: they are seeded alike, the masks differ."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    hashes = []

    def listen(purpose, rank, total):
        if purpose == "secure keys" and rank == 0:
            hashes.append(total.numpy().tobytes())

    for _ in range(2):
        World(3, tamper=listen).run(
            lambda comm: SecureExchange(comm, Identity.new(), None, b"").sum_(torch.ones(9, dtype=torch.int64), 0)
        )
        torch.manual_seed(3)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert hashes[0] != hashes[1]


# -- one party that does not keep to the protocol ------------------------------------------------------------


class Cheat(Party):
    """Rank 1 sends something else in one step: ``alter(attempt, body)`` stands for the body, rightly signed."""

    def __init__(self, session, step, alter):
        super().__init__(session)
        self.bad, self.alter = step, alter

    def _compose(self):
        if self.step.name == self.bad and self.rank == 1:
            name = self.step.name.lower()
            if name == "commit":
                self._now.commitment = self.alter(self._now.commitment)
            else:
                original = getattr(self._now.attempt, name)
                setattr(self._now.attempt, name, lambda *args: self.alter(original(*args)))
        return super()._compose()


def flipped(at):
    return lambda body: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@pytest.mark.parametrize(
    ("step", "alter", "reason"),
    [
        ("KEYS", lambda body: body[:32] + bytes(32) + body[64:], "rank 1's key is a point of low order"),
        ("KEYS", lambda body: body[:64] + bytes(32), "rank 1's key is a point of low order"),
        ("KEYS", lambda body: body[:64] + body[32:64], "rank 1 sends a key twice"),
        ("KEYS", lambda body: body[:-1], "rank 1's keys have 95 bytes"),
        ("SHARES", lambda body: body[:-1], "rank 1's shares have"),
        ("SHARES", flipped(40), "rank 1's shares for rank 0 do not decrypt"),
        ("SHARES", flipped(150), "rank 1's shares for rank 3 do not decrypt"),
        ("SHARES", flipped(0), "the seed restored for rank 1 is not the one it sealed"),
        ("COMMIT", flipped(0), "has another sum"),
        ("REVEAL", flipped(32), "the seed restored for rank 0 is not the one it sealed"),
        ("REVEAL", lambda body: b"\xff" * 33 + body[33:], "not an element of the field"),
        ("REVEAL", lambda body: body[33:], "rank 1 reveals 99 bytes for 4 shares"),
    ],
)
def test_a_party_that_cheats_burns_the_round_on_all_and_not_the_next(step, alter, reason):
    def body(comm):
        cheats = [True]

        def once(body):
            return alter(body) if cheats and cheats.pop() else body

        exchange = SecureExchange(comm, Identity.new(), None, b"", party=lambda s: Cheat(s, step, once))
        buffer = torch.full((7,), 3 + comm.rank)
        with pytest.raises(RoundAborted, match=reason):
            exchange.sum_(buffer, 0)
        assert buffer.tolist() == [3 + comm.rank] * 7  # as it was
        assert exchange.party._progress is None  # its keys are gone
        return exchange.sum_(buffer, 1).tolist()

    results = World(4).run(body)
    assert all(result == [18] * 7 for result in results.values())


def test_shares_are_revealed_for_the_attempt_of_their_certificate_only(monkeypatch):
    """Even if a party's state were led astray."""
    given = []
    reveal = Attempt.reveal
    monkeypatch.setattr(
        Attempt, "reveal", lambda a, certificate: given.append((a, certificate)) or reveal(a, certificate)
    )
    World(4).run(lambda comm: exchange_of(comm).sum_(torch.ones(3, dtype=torch.int64), 0))
    assert len(given) == 4
    for attempt, certificate in given:
        assert certificate.place == attempt.place
        for other in ({"round": 1}, {"epoch": 1}, {"members": (0, 1, 2)}):
            with pytest.raises(RuntimeError, match="would be revealed for"):
                reveal(attempt, replace(certificate, place=replace(attempt.place, **other)))


def test_misuse_of_a_party_is_refused():
    def body(comm):
        exchange, x = exchange_of(comm), torch.ones(3, dtype=torch.int64)
        with pytest.raises(ValueError, match="contiguous int64 or int32"):
            exchange.sum_(x.float(), 0)
        exchange.sum_(x, 4)
        for round in (4, 2):
            with pytest.raises(ValueError, match=f"round {round} does not follow round 4"):
                exchange.sum_(x, round)
        return "done"

    assert set(World(3).run(body).values()) == {"done"}


def test_two_ranks_are_too_few():
    def body(comm):
        with pytest.raises(ValueError, match="at least 3 ranks, not 2"):
            SecureExchange(comm, Identity.new(), None, b"")
        return "refused"

    assert set(World(2).run(body).values()) == {"refused"}


def test_no_attempt_has_the_number_of_another(monkeypatch):
    """Also of attempts that were given up; and a round that was repeated goes on counting."""
    made = {rank: [] for rank in range(N)}
    keys = Attempt.keys
    monkeypatch.setattr(Attempt, "keys", lambda a: made[a.rank].append((a.place, a._seed, a._pairwise)) or keys(a))

    def body(comm):
        exchange = exchange_of(comm)
        for round in range(2):
            exchange.sum_(torch.ones(3, dtype=torch.int64), round)

    World(N, [Death(3, "secure shares", "split", 0, [1])]).run(body)
    numbers = [[(place.round, place.epoch) for place, *_ in of_rank] for of_rank in made.values()]
    assert numbers == [[(0, 0), (0, 1), (1, 1)]] * 3 + [[(0, 0)]]
    secrets = [secret for of_rank in made.values() for _, *pair in of_rank for secret in pair]
    assert len(set(secrets)) == len(secrets)


# -- how many clients contribute -------------------------------------------------------------------------------


def counted(least, counts, deaths=()):
    """What ranks get that ask for ``least`` clients and contribute ``counts``, and what each masked vector was."""

    def body(comm):
        exchange = SecureExchange(comm, Identity.new(), None, b"", min_clients=least)
        try:
            return exchange.sum_(torch.full((3,), comm.rank), 0, counts[comm.rank]).tolist()
        except RoundAborted as reason:
            return str(reason)

    return World(len(counts), deaths).run(body)


@pytest.mark.parametrize("counts", [(1, 1, 1, 0), (0, 0, 3, 0), (2, 2, 2, 2)])
def test_enough_clients_are_summed(counts):
    assert counted(3, counts) == dict.fromkeys(range(4), [6] * 3)


@pytest.mark.parametrize("counts", [(1, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 0)])
def test_with_too_few_clients_nothing_is_masked_or_revealed(monkeypatch, counts):
    vectors, revealed = recorded(monkeypatch), []
    monkeypatch.setattr(Attempt, "reveal", lambda attempt, _: revealed.append(attempt))
    results = counted(3, counts)
    assert sorted(results) == [0, 1, 2, 3]
    assert all(f"clients that contribute: {sum(counts)}" in told for told in results.values())
    assert not vectors
    assert not revealed


def test_clients_of_a_lost_rank_do_not_count():
    deaths = [Death(3, "aggregate", "before")]
    assert all("contribute: 2" in told for told in counted(3, (1, 1, 0, 5), deaths).values())
    assert counted(2, (1, 1, 0, 5), deaths) == dict.fromkeys(range(3), [3] * 3)


def test_the_count_that_a_rank_sends_tells_nothing_by_itself(monkeypatch):
    """Of the same counts it is another number each time, and the masks of none but all members cancel."""
    sent, shares = [], Attempt.shares
    monkeypatch.setattr(Attempt, "shares", lambda *args: sent.append(shares(*args)) or sent[-1])
    for _ in range(8):
        counted(1, (1, 1, 1))
    numbers = [int.from_bytes(body[32:40], "big") for body in sent]
    assert len(set(numbers)) == 24
    runs = [numbers[at : at + 3] for at in range(0, 24, 3)]
    assert all(sum(run) % 2**64 == 3 for run in runs)
    assert all((a + b) % 2**64 > 2**40 for run in runs for a, b in itertools.combinations(run, 2))
