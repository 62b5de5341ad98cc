"""When a party reveals the shares that it holds: one rule, and the proof of what it keeps secret.

The rule. A party commits to one masked sum a round, over all members of one attempt, and begins no other attempt at the
round after that. It reveals its shares of that attempt when it holds a certificate: it has checked the signatures of
the same commitment by everybody who is left, itself among them, all members of the attempt, and they are a quorum of
the session's parties.

What it keeps secret. Of n parties, with a quorum of q = n - floor(n/3), c collude. They deviate as they like, and rule
the network and the store: they show different parties different messages, members and sums, keep what they like, repeat
what is old. If

    c < 2 q - n = n - 2 floor(n/3)

then in a round they learn about the others' vectors nothing but one sum, over the honest members of one attempt, of
whom there are at least floor(n/3) + 1. (The bound of Bonawitz et al. 2017, section 6: t > (n + c) / 2 for t = q.)

Proof. 1. The seed b_i of an honest member takes q shares to restore, so q - c of them from honest parties who reveal
in that attempt. Each does so in one attempt a round, for it has committed to one. So for two attempts there would have
to be 2 (q - c) honest parties, and there are n - c: c >= 2 q - n. 2. In all attempts of a round but one the seeds stay
unknown, so y_i is uniform. 3. In that one the seeds are known, and with them y_i - PRG(b_i), in which x_i is masked
pairwise with every other honest member. The keys of these masks never leave their owners, so all that is not masked is
the sum over the honest members. An attempt has q members or more, and q - c >= n - q + 1 = floor(n/3) + 1. QED.

Those who only look on and keep to the protocol may be q - 1: with q they restore any seed by themselves, and read the
sums of attempts that were given up.

There is nothing to reveal of a party that is lost, as there is with a server that adds up whoever answers: an
all_reduce sums the vectors of all members or of none. If one is lost before, the others begin a new attempt under fresh
keys. So there is one kind of share, of seeds, and no second kind that could be asked for besides. The certificate is
for the result: all that reveal have committed to the same sum. The proof is of complete graphs; for the sparse ones,
from 80 parties on, see graph.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .envelope import Refused, RoundPlace
from .hello import LEAST_PARTIES


def quorum(world_size: int) -> int:
    """How many of a session's parties must be left: all but a third. As many shares restore a seed."""
    return max(2, world_size - world_size // 3)


@dataclass(frozen=True)
class Certificate:
    """A quorum has committed to one masked sum over all members of the attempt at ``place``."""

    place: RoundPlace


class RevealRule:
    """One party's commitments, and its certificates. Only `certify` makes a certificate."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._needed = rank, quorum(world_size)
        self._place, self._commitment = RoundPlace(-1, -1, ()), b""

    def committed(self, round: int) -> bool:
        """Whether this party has committed to a sum of the round, and so begins no other attempt at it."""
        return self._place.round >= round

    def commit(self, place: RoundPlace, commitment: bytes) -> None:
        """Commit to a sum over the members of ``place``. Raises Refused for a second one of the round."""
        if self.committed(place.round) and (place, commitment) != (self._place, self._commitment):
            raise Refused(f"rank {self._rank} got another sum the second time")
        self._place, self._commitment = place, commitment

    def certify(self, place: RoundPlace, commitments: Mapping[int, bytes]) -> Certificate:
        """The certificate of the sum that this party has committed to.

        Args:
            place: of the attempt.
            commitments: by rank, of everybody who is left; their signatures have been checked.

        Raises:
            Refused: no share may be revealed.
        """
        members, left = place.members, len(commitments)
        if place != self._place or not {self._rank} <= set(commitments) <= set(members):
            raise Refused(f"ranks {sorted(commitments)} commit to a sum over {list(members)}: not with {self._rank}")
        if len(members) < max(LEAST_PARTIES, self._needed) or left < self._needed:
            raise Refused(f"{len(members)} parties in the sum, {left} left: {self._needed} are needed")
        for other, body in commitments.items():
            if body != self._commitment:
                raise Refused(f"rank {other} has another sum than rank {self._rank}")
        return Certificate(place)
