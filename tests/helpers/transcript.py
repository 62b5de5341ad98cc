"""What a whole transcript gives away: an adversary that does all the subtractions there are.

It reads every masked vector of every attempt, also of those that were given up, and every share that was revealed, and
may have some parties on its side. From the shares it restores all seeds that it can, and takes the masks that they make
off the vectors. What masks it does not know are unknowns, each once per key: a combination of vectors tells something
about the parties' numbers if and only if the unknown masks cancel in it. The left null space of the matrix of unknowns
holds all such combinations (over the integers: the matrix is a graph's incidence matrix beside an identity, whose Smith
form has ones only, so that the ring adds none). Each combination is then computed on the real numbers, so that a
mistake of the adversary shows as a wrong value.
"""

from __future__ import annotations

import random
from fractions import Fraction
from math import lcm

import torch

from fedddp.secure import masks, shamir
from fedddp.secure.attempt import Attempt

LENGTH = 3
RING = 2**64


def vector(rank, round):
    """A rank's numbers [LENGTH] in a round."""
    drawn = random.Random(f"{rank} {round}")
    return [drawn.randrange(RING) - RING // 2 for _ in range(LENGTH)]


class Recorder:
    """Listens to all attempts: masked vectors, revealed shares, and each party's own secrets."""

    def __init__(self, monkeypatch):
        self.attempts, self.vectors, self.revealed = [], [], []

        def after(name, note):
            original = getattr(Attempt, name)

            def wrapped(attempt, *args):
                result = original(attempt, *args)
                note(attempt, result)
                return result

            monkeypatch.setattr(Attempt, name, wrapped)

        after("keys", lambda attempt, body: self.attempts.append(attempt))
        after("mask", self._mask)
        after("reveal", self._reveal)

    def _mask(self, attempt, masked):
        used = [(attempt._self_key(attempt.rank, attempt._seed), 1)]
        used += [(key, 1 if rank > attempt.rank else -1) for rank, key in attempt._pairs.items()]
        self.vectors.append((attempt, masked.tolist(), used))  # the keys name the unknowns, their values are not used

    def _reveal(self, attempt, body):
        for at, owner in enumerate(attempt.graph.holders(attempt.rank)):
            share = body[at * shamir.SHARE_BYTES : (at + 1) * shamir.SHARE_BYTES]
            self.revealed.append((attempt, owner, share))

    # -- the adversary ----------------------------------------------------------------------------------------

    def known_keys(self, coalition, given=()):
        """Keys of masks that it can make: from shares that were revealed, that its own parties hold, or ``given``.

        ``given``: attempts whose pairwise keys it has, by some means that the protocol does not offer.
        """
        shares, one, known = {}, {}, set()
        for attempt, owner, share in self.revealed:
            shares.setdefault((attempt.place, owner), {})[attempt.rank + 1] = share
        for attempt in self.attempts:
            one[attempt.place] = attempt
            if attempt.rank in coalition:
                known |= {attempt._self_key(attempt.rank, attempt._seed), *attempt._pairs.values()}
                for owner, share in attempt._held.items():
                    shares.setdefault((attempt.place, owner), {})[attempt.rank + 1] = share
            if attempt in given:
                known |= set(attempt._pairs.values())
        for (place, owner), found in shares.items():
            if len(found) >= one[place].graph.threshold:
                known.add(one[place]._self_key(owner, shamir.combine(found, one[place].graph.threshold)))
        return known

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
                name = attempt.rank, attempt.place.round
                of[name] = of.get(name, 0) + c
            value = [sum(c * v[at] for c, v in zip(combination, values, strict=True)) % RING for at in range(LENGTH)]
            found.append(({name: c for name, c in of.items() if c}, value))
        assert all(of or not any(value) for of, value in found), "one key masks two vectors"
        return [(of, value) for of, value in found if of]

    def check(self, summed, coalition=()):
        """Assert that it knows the sums, rightly, and nothing else of the parties that are not its own."""
        learned = self.learned(coalition)
        for of, value in learned:
            for at in range(LENGTH):
                assert value[at] == sum(c * vector(*name)[at] for name, c in of.items()) % RING
        assert self.of_others(learned, coalition) == expected(summed, coalition)

    def check_one_sum_a_round(self, coalition, least):
        """Assert that of each round it knows one sum at most, over ``least`` parties or more that are not its own."""
        rows = self.of_others(self.learned(coalition), coalition)
        for row in rows:
            assert all(c == 1 for _, c in row), row
            assert len({round for (_, round), _ in row}) == 1, row
            assert len(row) >= least, row
        rounds = [row[0][0][1] for row in rows]
        assert len(set(rounds)) == len(rounds), rows

    @staticmethod
    def of_others(learned, coalition):
        """What it has learned of the parties that are not its own, as the reduced basis of a space."""
        return span([{name: c for name, c in of.items() if name[0] not in coalition} for of, _ in learned])


def expected(summed, coalition=()):
    """What is public: the sums, by round, and what the coalition's parties know of themselves."""
    return span([{(rank, round): 1 for rank in ranks if rank not in coalition} for round, ranks in summed.items()])


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
