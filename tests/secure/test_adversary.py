"""What a whole transcript gives away: an adversary that does all the subtractions there are.

It reads every masked vector of every attempt, also of those that were given up, and every share that was revealed, and
may have some parties on its side. From the shares it restores all secrets that it can, and takes the masks that they
make off the vectors. What masks it does not know are unknowns, each once per key: a combination of vectors tells
something about the parties' numbers if and only if the unknown masks cancel in it. The left null space of the matrix of
unknowns holds all such combinations (over the integers: the matrix is a graph's incidence matrix beside an identity,
whose Smith form has ones only, so that the ring adds none). Each combination is then computed on the real numbers, so
that a mistake of the adversary shows as a wrong value.
"""

import contextlib
import copy
import itertools
import random
from fractions import Fraction
from math import lcm

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedddp.comm import CommError
from fedddp.secure import Identity, Party, RoundBurnt, SecureExchange, masks, party, quorum, shamir
from fedddp.secure.attempt import Attempt, digest
from fedddp.secure.recovery import Step
from tests.helpers.threaded import Death, World

LENGTH = 3
RING = 2**64


def vector(rank, round):
    drawn = random.Random(f"{rank} {round}")
    return [drawn.randrange(RING) - RING // 2 for _ in range(LENGTH)]


class Recorder:
    """Listens to all attempts: public points, masked vectors, revealed shares, and each party's own secrets."""

    def __init__(self, monkeypatch):
        self.attempts, self.points, self.vectors = [], {}, []
        self.revealed, self.held, self.keys = [], {}, {}

        def after(name, note):
            original = getattr(Attempt, name)

            def wrapped(attempt, *args):
                result = original(attempt, *args)
                note(attempt, result, *args)
                return result

            monkeypatch.setattr(Attempt, name, wrapped)

        after("keys", self._keys)
        after("accept", self._accept)
        mask = Attempt.mask
        monkeypatch.setattr(Attempt, "mask", lambda attempt, y: self._mask(attempt, y, mask))
        after("reveal", self._reveal)

    def _keys(self, attempt, body):
        self.attempts.append(attempt)
        self.points[attempt._context, attempt.rank] = body[32:]

    def _accept(self, attempt, result, bodies):
        self.held[attempt._context, attempt.rank] = copy.deepcopy(attempt._held)

    def _mask(self, attempt, y, mask):
        used = [(attempt._self_key(attempt.rank, attempt._seed), 1)]
        used += [(key, 1 if rank > attempt.rank else -1) for rank, key in attempt._pairs.items()]
        masked = mask(attempt, y)
        self.vectors.append((attempt, masked.tolist(), used))  # the keys name the unknowns, their values are not used
        return masked

    def _reveal(self, attempt, body, summed):
        for at, owner in enumerate(attempt.graph.holders(attempt.rank)):
            share = body[at * shamir.SHARE_BYTES : (at + 1) * shamir.SHARE_BYTES]
            self.revealed.append((attempt, owner, "seed" if owner in summed else "key", share))

    # -- the adversary ----------------------------------------------------------------------------------------

    def known_keys(self, coalition, given=()):
        """Keys of masks that it can make: from shares that were revealed, that its own parties hold, or ``given``."""
        shares, one = {}, {}
        for attempt, owner, kind, share in (*self.revealed, *given):
            shares.setdefault((attempt._context, owner, kind), {})[attempt.rank + 1] = share
        for attempt in self.attempts:
            one[attempt._context] = attempt
            if attempt.rank in coalition:
                for owner, kinds in self.held.get((attempt._context, attempt.rank), {}).items():
                    for kind, share in kinds.items():
                        shares.setdefault((attempt._context, owner, kind), {})[attempt.rank + 1] = share
        known = set()
        for (context, owner, kind), found in shares.items():
            attempt = one[context]
            if len(found) < attempt.graph.threshold:
                continue
            secret = shamir.combine(found, attempt.graph.threshold)
            known |= self._made_by(attempt, owner, kind, secret)
        for attempt in self.attempts:
            if attempt.rank in coalition:
                known |= self._made_by(attempt, attempt.rank, "seed", attempt._seed)
                known |= self._made_by(attempt, attempt.rank, "key", attempt._pairwise)
        return known

    def _made_by(self, attempt, owner, kind, secret):
        if kind == "seed":
            return {attempt._self_key(owner, secret)}
        private = X25519PrivateKey.from_private_bytes(secret)
        points = {rank: self.points.get((attempt._context, rank)) for rank in attempt.graph.neighbours[owner]}
        shared = {r: private.exchange(X25519PublicKey.from_public_bytes(p)) for r, p in points.items() if p}
        return {attempt._mask_key(secret, owner, rank) for rank, secret in shared.items()}

    def learned(self, coalition=(), given=()):
        """What it knows of the parties' vectors: [({(rank, round): coefficient}, the combination's value)]."""
        known = self.known_keys(coalition, given)
        unknown = sorted({key for _, _, used in self.vectors for key, _ in used if key not in known})
        place = {key: at for at, key in enumerate(unknown)}
        matrix, values = [], []
        for _, y, used in self.vectors:
            row, value = [0] * len(unknown), list(y)
            for key, sign in used:
                if key in known:
                    stream = masks.add(torch.zeros(LENGTH, dtype=torch.int64), [(key, 1)]).tolist()
                    value = [v - sign * s for v, s in zip(value, stream, strict=True)]
                else:
                    row[place[key]] += sign
            matrix.append(row)
            values.append(value)
        found = []
        for combination in left_null_space(matrix):
            of = {}
            for c, (attempt, _, _) in zip(combination, self.vectors, strict=True):
                name = attempt.rank, round_of(attempt)
                of[name] = of.get(name, 0) + c
            value = [sum(c * v[at] for c, v in zip(combination, values, strict=True)) % RING for at in range(LENGTH)]
            found.append(({name: c for name, c in of.items() if c}, value))
        assert all(of or not any(value) for of, value in found), "one key masks two vectors"
        return [(of, value) for of, value in found if of]


def round_of(attempt):
    return int.from_bytes(attempt._context[:8], "big")


def left_null_space(matrix):
    """Integer vectors c with c M = 0, a basis of them all."""
    rows = [[Fraction(v) for v in row] for row in matrix]
    sides = [[Fraction(i == j) for j in range(len(rows))] for i in range(len(rows))]
    done = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot], sides[done], sides[pivot] = rows[pivot], rows[done], sides[pivot], sides[done]
        for i in range(done + 1, len(rows)):
            factor = rows[i][column] / rows[done][column]
            if factor:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[done], strict=True)]
                sides[i] = [a - factor * b for a, b in zip(sides[i], sides[done], strict=True)]
        done += 1
    scaled = [(side, lcm(*(v.denominator for v in side))) for side in sides[done:]]
    return [[int(v * scale) for v in side] for side, scale in scaled]


def span(combinations):
    """The reduced basis of a space of combinations of named numbers."""
    names = sorted({name for of in combinations for name in of})
    rows, basis = [[Fraction(of.get(name, 0)) for name in names] for of in combinations], []
    for column in range(len(names)):
        row = next((row for row in rows if row[column]), None)
        if row is None:
            continue
        rows.remove(row)
        row = [v / row[column] for v in row]
        rows = [[a - other[column] * b for a, b in zip(other, row, strict=True)] for other in rows]
        basis = [[a - other[column] * b for a, b in zip(other, row, strict=True)] for other in basis] + [row]
    return {tuple((name, v) for name, v in zip(names, row, strict=True) if v) for row in basis}


def transcript(monkeypatch, n, deaths, count=2, shape=None, of=Party):
    """What was recorded of some rounds, and which of them were not burnt."""
    recorder = Recorder(monkeypatch)

    def body(comm):
        exchange, kept = SecureExchange(comm, Identity.new(), None, b"", party=lambda s: of(s, shape=shape)), set()
        for round in range(count):
            with contextlib.suppress(RoundBurnt, CommError):
                exchange.sum_(torch.tensor(vector(comm.rank, round)), round)
                kept.add(round)
        return kept

    return recorder, set.union(*World(n, deaths).run(body).values())


def expected(summed, coalition=()):
    """What is public: the sums, and what the coalition's parties know of themselves."""
    return span([{(rank, round): 1 for rank in ranks if rank not in coalition} for round, ranks in summed.items()])


def check(recorder, summed, coalition=()):
    """It knows the sums, rightly, and nothing else of the parties that are not its own."""
    learned = recorder.learned(coalition)
    for of, value in learned:
        for at in range(LENGTH):
            assert value[at] == sum(c * vector(*name)[at] for name, c in of.items()) % RING
    others = [{name: c for name, c in of.items() if name[0] not in coalition} for of, _ in learned]
    assert span(others) == expected(summed, coalition)


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
    check(recorder, summed)
    size = quorum(n) - 1 if not deaths else 1
    for begin in range(n):
        coalition = {(begin + i) % n for i in range(min(size, n - 2))}
        check(recorder, summed, coalition)


@pytest.mark.parametrize("kinds", [("seed",), ("key",), ("seed", "key")])
def test_with_both_kinds_of_shares_it_succeeds(monkeypatch, kinds):
    """The control: the same adversary isolates a party if, and only if, both of its secrets are told."""
    recorder, _ = transcript(monkeypatch, 4, [], count=1)
    victim = 2
    given = [
        (attempt, victim, kind, recorder.held[attempt._context, attempt.rank][victim][kind])
        for attempt in recorder.attempts
        for kind in kinds
    ]
    learned = recorder.learned(given=given)
    alone = [value for of, value in learned if set(of) == {(victim, 0)}]
    if kinds == ("seed",):  # revealed anyway
        check(recorder, {0: range(4)})
        assert not alone
    else:
        assert alone
        assert alone[0] == [v % RING for v in vector(victim, 0)]


def test_a_coalition_as_large_as_the_threshold_succeeds(monkeypatch):
    """The control for coalitions: that many restore any secret on their own. (Nobody else needs to be lost.)"""
    recorder, _ = transcript(monkeypatch, 6, [], count=1)
    learned = recorder.learned(coalition={0, 1, 2, 3})
    alone = span([{name: c for name, c in of.items() if name[0] > 3} for of, _ in learned])
    assert alone == span([{(4, 0): 1}, {(5, 0): 1}])


def test_of_a_burnt_round_nothing_is_learned(monkeypatch):
    """One party receives another sum than the others."""
    digests = itertools.count()
    monkeypatch.setattr(party, "digest", lambda total: digest(total + (next(digests) == 1)))
    recorder, kept = transcript(monkeypatch, 4, [])
    assert kept == {1}
    assert {round_of(attempt) for attempt, *_ in recorder.vectors} == {0, 1}
    assert {round_of(attempt) for attempt, *_ in recorder.revealed} == {1}
    check(recorder, {1: range(4)})
    check(recorder, {1: range(4)}, {3})


LIES = {
    "filled up with a party that is not in the attempt": (0, 1, 5),
    "filled up and with a quorum": (0, 1, 4, 5),
    "all of the attempt and one more": (0, 1, 2, 3, 4, 5),
    "fewer than the quorum": (0, 1, 4),
    "without one that is left": (0, 1, 3, 4),
    "without the one that says so": (0, 2, 3, 4),
    "nobody": (),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_whoever_lies_about_who_is_in_the_sum_learns_nothing(monkeypatch, lie):
    """Of six parties 5 is lost before keys and 4 before the sum; then 1 says that it has the sum, over ``lie``."""

    class Liar(Party):
        def status(self):
            told = self.step, self._summed
            if self.rank == 1 and self.step is Step.MASK:
                self.step, self._summed = Step.COMMIT, lie
            message = super().status()
            self.step, self._summed = told
            return message

    deaths = [Death(5, "secure keys", "before"), Death(4, "aggregate", "before")]
    recorder, kept = transcript(monkeypatch, 6, deaths, of=Liar)
    assert kept == {1}
    assert not [attempt for attempt, *_ in recorder.revealed if round_of(attempt) == 0]
    check(recorder, {1: range(4)}, {1})


def test_in_a_sparse_graph_too(monkeypatch):
    """Of 36 parties each shares masks with 8; one is lost after it has masked."""
    recorder, kept = transcript(monkeypatch, 36, [Death(7, "secure shares", "after")], 1, shape=(8, 6))
    assert kept == {0}
    assert {len(attempt.neighbours) for attempt in recorder.attempts} == {8}
    check(recorder, {0: [rank for rank in range(36) if rank != 7]})


def test_no_key_of_a_mask_serves_twice(monkeypatch):
    """Over rounds and attempts: each masks one vector, or two of one attempt with opposite signs."""
    recorder, _ = transcript(monkeypatch, 4, [Death(3, "secure shares", "split", 1, [1])], count=4)
    seen: dict[bytes, list[tuple[bytes, int]]] = {}
    for attempt, _, used in recorder.vectors:
        for key, sign in used:
            seen.setdefault(key, []).append((attempt._context, sign))
    assert len({attempt._context for attempt, *_ in recorder.vectors}) == 5
    for uses in seen.values():
        assert len({context for context, _ in uses}) == 1
        assert sorted(sign for _, sign in uses) in ([1], [-1], [-1, 1])
