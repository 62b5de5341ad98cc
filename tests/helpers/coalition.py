"""Colluding parties that rule the network and the store: what each of the honest ones receives is theirs to say.

Honest parties are `Party` objects. For each attempt that some honest parties stand in, the coalition keeps attempts of
its own members, so that what it sends is rightly made and signed, and the honest go on. Masked vectors and messages of
the honest are read as they are made; as the sum they are given zeros, since the coalition can add up by itself.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress

import torch

from fedddp.secure import Greeting, Identity, Party, Roster, RoundAborted, TooFewParties
from fedddp.secure.attempt import Attempt
from fedddp.secure.envelope import Refused, RoundPlace, seal, unseal
from fedddp.secure.recovery import Status, Step
from fedddp.secure.reveal import Certificate
from tests.helpers.transcript import LENGTH, vector


def sessions_of(n):
    """A session of ``n`` parties under a roster, for each of them."""
    identities = [Identity.new() for _ in range(n)]
    roster = Roster({rank: identity.public for rank, identity in enumerate(identities)})
    greetings = [Greeting(rank, n, identity, roster, b"") for rank, identity in enumerate(identities)]
    return [greeting.meet([g.message for g in greetings]) for greeting in greetings]


class Coalition:
    """``size`` colluders, the last ranks of ``n``."""

    def __init__(self, n, size):
        self.sessions = sessions_of(n)
        self.n, self.ranks = n, tuple(range(n - size, n))
        self.honest = {rank: Party(self.sessions[rank]) for rank in range(n - size)}
        self.own: dict[RoundPlace, dict[int, Attempt]] = {}
        self.said: dict[tuple[RoundPlace, Step, int], bytes] = {}
        self.reasons: list[str] = []
        """Why honest parties gave up a round."""

    @contextmanager
    def tolerated(self):
        try:
            yield
        except (RoundAborted, TooFewParties) as reason:
            self.reasons.append(str(reason))

    def begin(self, round, ranks=None):
        for rank in self.honest if ranks is None else ranks:
            with self.tolerated():
                self.honest[rank].begin(round, torch.tensor(vector(rank, round)))

    def at(self, rank):
        """Where an honest party stands: the place of its attempt and its step."""
        party = self.honest[rank]
        return (party._progress.attempt.place if party._progress else None), party.step

    # -- a step of some honest parties ------------------------------------------------------------------------

    def advance(self, ranks):
        """Let each of the honest ``ranks`` do its next step, with all messages that are there, or rightly made."""
        for rank in ranks:
            self.speak(rank)
        for rank in ranks:
            self.listen(rank)

    def through(self, ranks, step):
        """`advance` those of ``ranks`` that have a round under way until they stand at ``step``."""
        for _ in range(6):
            going = [rank for rank in ranks if self.at(rank)[1] not in (Step.IDLE, step)]
            self.advance(going)

    def speak(self, rank):
        party, (place, step) = self.honest[rank], self.at(rank)
        if step is Step.MASK or (place and party.sums):
            party.masked()
            for colluder in self.ranks:
                with suppress(Refused, KeyError):
                    self._attempt(place, colluder, party).accept(self._bodies(place, Step.SHARES))
        elif place:
            self.said[place, step, rank] = party.message()

    def listen(self, rank, drop=()):
        party, (place, step) = self.honest[rank], self.at(rank)
        if not place:
            return
        if party.sums:
            party.summed(torch.zeros(LENGTH, dtype=torch.int64))
            return
        messages = [b""] * self.n
        for other in set(party.members) - set(drop):
            own = other in self.ranks
            messages[other] = self.forged(other, party) if own else self.said.get((place, step, other), b"")
        with self.tolerated():
            party.receive(messages)

    def forged(self, rank, to):
        """What a colluder sends an honest party in its step: the most helpful thing."""
        place, step = self.at(to.rank)
        attempt = self._attempt(place, rank, to)
        if (place, step, rank) in self.said:
            return self.said[place, step, rank]
        try:
            if step is Step.KEYS:
                body = attempt.keys()
            elif step is Step.SHARES:
                attempt.agree(self._bodies(place, Step.KEYS))
                body = attempt.shares()
            elif step is Step.COMMIT:
                body = to._progress.commitment
            else:
                body = attempt.reveal(Certificate(place))
        except (Refused, KeyError):  # not all of the honest are in this attempt
            return b""
        message = seal(self.sessions[rank], place, step.name, body)
        if step in (Step.KEYS, Step.SHARES):
            self.said[place, step, rank] = message
        return message

    def _attempt(self, place, rank, like):
        own = self.own.setdefault(place, {})
        if rank not in own:
            own[rank] = Attempt(self.sessions[rank], place, like._progress.attempt.graph)
        return own[rank]

    def _bodies(self, place, step):
        return {
            rank: unseal(self.sessions[self.ranks[0]], place, step.name, rank, self.said[place, step, rank])
            for rank in place.members
        }

    # -- lies after a loss ------------------------------------------------------------------------------------

    def regroup(self, ranks, epoch, claim, left=None):
        """Tell the honest ``ranks`` that they and the colluders are left, these with statuses ``claim(colluder, to)``.

        ``left``: who is left as they are told, if it is not that.
        """
        members = tuple(sorted({*ranks, *self.ranks} if left is None else left))
        for rank in ranks:
            self.honest[rank].regrouped(members, epoch)
        statuses = {rank: self.honest[rank].status() for rank in ranks}
        for rank in ranks:
            messages = [statuses.get(other, b"") for other in range(self.n)]
            for other in self.ranks:
                messages[other] = self.status(other, members, epoch, claim(other, rank))
            with self.tolerated():
                self.honest[rank].follow(messages)

    def status(self, rank, members, epoch, claimed: Status):
        return seal(self.sessions[rank], RoundPlace(-1, epoch, members), "STATUS", claimed.pack())
