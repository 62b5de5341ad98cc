"""One party of secure aggregation as a state machine without a transport: messages in, messages out.

    begin -> KEYS -> SHARES -> MASK -> COMMIT -> REVEAL -> idle, with the sum in `result`

In each step but MASK a party gives `message` and takes everybody's in `receive`; in MASK it gives `masked` and takes
the sum over the members in `summed`. Whoever finds something wrong says so in its next message, so that all abort the
round together. After a loss: `regrouped`, then everybody's `status` into `follow`, which takes recovery.py's rule.

What a party holds to on its own, whatever others say: one attempt at a round in an epoch, under keys of its own, one
commitment a round and nothing begun after it, no share without a certificate (reveal.py).
"""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, zeros_like

from ..types import RoundAborted
from . import masks
from .attempt import KEYS_BYTES, Attempt, OtherModel, digest, reveal_bytes, shares_bytes
from .envelope import (
    NO_STATE,
    OVERHEAD,
    REASON_BYTES,
    Refused,
    RefusedElsewhere,
    RoundPlace,
    seal,
    seal_refusal,
    unseal,
)
from .graph import draw, most_neighbours, shape_for
from .hello import LEAST_PARTIES, Session
from .recovery import STATUS_BYTES, Action, Outcome, Plan, Status, Step, decide
from .reveal import Certificate, RevealRule, quorum


class TooFewParties(RuntimeError):
    """So many ranks are lost that no further round can be kept secret, or be finished."""


@dataclass
class Progress:
    """How far a party has come in an attempt at a round; ``x`` [L] is its vector, of so many contributors."""

    attempt: Attempt
    x: Tensor
    contributors: int
    messages: dict[Step, bytes] = field(default_factory=dict)
    total: Tensor | None = None
    commitment: bytes = b""
    certificate: Certificate | None = None
    fault: str = ""
    supplier: int = -1


@dataclass
class Past:
    """What a party has done, which it holds to whatever others say.

    Attributes:
        ended: the last round that ended for it, and how.
        begun: round and epoch of its last attempt.
        revealed: the last round in which it revealed shares, and its message, should others still need it.
    """

    ended: tuple[int, Outcome] = (-1, Outcome.NONE)
    begun: tuple[int, int] = (-1, -1)
    revealed: tuple[int, bytes] | None = None


class Party:
    """One party of a session.

    Args:
        session: of all parties.
        min_clients: fewest clients that may contribute to a round's sum; with fewer nobody masks anything.
        shape: neighbours and threshold of each party, for tests.
        random_bytes: for tests.
    """

    def __init__(
        self,
        session: Session,
        *,
        min_clients: int = 0,
        shape: tuple[int, int] | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        n = session.world_size
        self.session = session
        self.members, self.epoch = tuple(range(n)), 0
        self.step, self.round = Step.IDLE, -1
        self.result: Tensor | None = None
        self._shape, self._random = shape or shape_for(n), random_bytes
        self._past, self._rule, self._min_clients = Past(), RevealRule(self.rank, n), min_clients
        self._progress: Progress | None = None

    @property
    def rank(self) -> int:
        return self.session.rank

    # -- a round ----------------------------------------------------------------------------------------------

    def begin(self, round: int, x: Tensor, state: bytes = NO_STATE, contributors: int = 0) -> None:
        """Start a round with this party's vector [L], int64 or int32, which must not change until the round is over.

        ``state``: digest of the model that the round starts from, which must be the same on all parties.
        ``contributors``: how many clients the vector is of.
        Raises ValueError for a round that is not later than all before: an aborted round is not repeated, because sums
        of the same vectors over two sets of parties would give the difference away. Raises TooFewParties.
        """
        if self.step is not Step.IDLE or round <= self._past.ended[0]:
            raise ValueError(f"round {round} does not follow round {max(self.round, self._past.ended[0])}")
        masks.check(x)
        self.round, self.result = round, None
        self._start(x, state, contributors)

    def _start(self, x: Tensor, state: bytes, contributors: int) -> None:
        """A new attempt with the members of now, under keys that were never used."""
        left, needed = len(self.members), max(LEAST_PARTIES, quorum(self.session.world_size))
        if left < needed:
            self._aborted("too few parties")
            raise TooFewParties(
                f"{left} of {self.session.world_size} parties are left, {needed} are needed; start the run "
                "again with fewer ranks, from its checkpoint"
            )
        if (self.round, self.epoch) <= self._past.begun:
            raise RuntimeError(f"a second attempt at round {self.round} in epoch {self.epoch}")
        self._past.begun = self.round, self.epoch
        seed = self.session.transcript + struct.pack(">qq", self.round, self.epoch)
        graph = draw(self.members, quorum(self.session.world_size), seed, self._shape)
        place = RoundPlace(self.round, self.epoch, graph.members, state)
        self._progress = Progress(Attempt(self.session, place, graph, self._random), x, contributors)
        self.step = Step.KEYS

    @property
    def size(self) -> int:
        """The most bytes that a message of this step has, on any party."""
        return self._size(self.step)

    def _size(self, step: Step) -> int:
        most = most_neighbours(self.session.world_size, self._shape)
        shares, revealed = shares_bytes(most), reveal_bytes(most)
        sizes = {Step.KEYS: KEYS_BYTES, Step.SHARES: shares, Step.COMMIT: 32, Step.REVEAL: revealed}
        return OVERHEAD + max(sizes[step], REASON_BYTES)

    def message(self) -> bytes:
        """This party's message of this step; the same again if it is asked for again."""
        messages = self._now.messages
        if self.step not in messages:
            messages[self.step] = self._compose()
        return messages[self.step]

    def _compose(self) -> bytes:
        now = self._now
        if now.fault:
            return seal_refusal(self.session, self._place, self.step.name, now.fault)
        return seal(self.session, self._place, self.step.name, self._body(now))

    def _body(self, now: Progress) -> bytes:
        if self.step is Step.KEYS:
            return now.attempt.keys()
        if self.step is Step.SHARES:
            return now.attempt.shares(now.contributors)
        if self.step is Step.COMMIT:
            return now.commitment
        assert now.certificate is not None
        return now.attempt.reveal(now.certificate)

    def receive(self, messages: Sequence[bytes]) -> None:
        """Everybody's messages of this step, by original rank; move on to the next step.

        Raises RoundAborted, and OtherModel where the parties start from different models.
        """
        now, step = self._now, self.step
        try:
            self._use(now, self._read(now, messages))
        except RefusedElsewhere as reason:
            raise self._aborted(str(reason)) from None
        except OtherModel as error:
            self._aborted(str(error))
            raise OtherModel(f"round {self.round + 1}: {error}") from None
        except Refused as reason:
            now.fault = now.fault or str(reason)
        if step is not Step.REVEAL:
            self.step = Step(step + 1)
        elif now.fault:
            raise self._aborted(now.fault)
        else:
            self._finish(now)

    def _use(self, now: Progress, bodies: Mapping[int, bytes]) -> None:
        if self.step is Step.KEYS:
            now.attempt.agree(bodies)
        elif self.step is Step.SHARES:
            now.attempt.accept(bodies)
            if now.attempt.contributors < self._min_clients:
                raise Refused(
                    f"clients that contribute: {now.attempt.contributors}; "
                    f"privacy.secure_aggregation.min_clients asks for {self._min_clients}"
                )
        elif self.step is Step.COMMIT:
            now.certificate = self._rule.certify(now.attempt.place, bodies)
        else:
            assert now.total is not None
            now.attempt.unmask(now.total, bodies)

    def _read(self, now: Progress, messages: Sequence[bytes]) -> dict[int, bytes]:
        bodies, complaints = {}, []
        for rank in self.members:
            try:
                bodies[rank] = unseal(self.session, self._place, self.step.name, rank, messages[rank])
            except Refused as reason:
                complaints.append(reason)
        if messages[self.rank] != now.messages[self.step]:
            complaints.append(Refused(f"the message of rank {self.rank} itself came back altered"))
        if complaints:
            raise min(complaints, key=lambda complaint: not isinstance(complaint, RefusedElsewhere))
        return bodies

    # -- the sum ----------------------------------------------------------------------------------------------

    @property
    def sums(self) -> bool:
        """Whether a sum over the members comes next, and not a message."""
        return self.step is Step.MASK or self._now.supplier >= 0

    def masked(self) -> Tensor:
        """What this party puts into the sum [L]: new memory, for a collective to sum in place.

        Where one supplies the sum to those who have none, that is its sum, and zeros of all others.
        """
        now = self._now
        if now.supplier == self.rank and now.total is not None:
            return now.total.clone()
        return zeros_like(now.x) if now.supplier >= 0 or now.fault else now.attempt.mask(now.x.clone())

    def summed(self, total: Tensor) -> None:
        """The sum over the members [L], now this party's. Nothing else is ever committed to in this round."""
        now, commitment = self._now, digest(total)
        now.supplier = -1
        try:
            self._rule.commit(now.attempt.place, commitment)
            now.total, now.commitment = total, commitment
        except Refused as reason:
            now.fault = now.fault or str(reason)
        self.step = max(self.step, Step.COMMIT)

    # -- after a loss -----------------------------------------------------------------------------------------

    def regrouped(self, members: Sequence[int], epoch: int) -> None:
        """Who is left, and how often that was decided."""
        self.members, self.epoch = tuple(sorted(members)), epoch

    status_size = OVERHEAD + STATUS_BYTES

    def status(self) -> bytes:
        """Where this party stands, for the other survivors."""
        return seal(self.session, self._here, "STATUS", self._status().pack())

    def _status(self) -> Status:
        epoch = self._progress.attempt.place.epoch if self._progress else -1
        return Status(self.step, self.round, epoch, *self._past.ended)

    def follow(self, messages: Sequence[bytes]) -> Plan:
        """Take up what the survivors' statuses ask for. Raises RoundAborted or TooFewParties."""
        try:
            statuses = {
                rank: Status.unpack(unseal(self.session, self._here, "STATUS", rank, messages[rank]))
                for rank in self.members
            }
        except ValueError as reason:
            if self.step is Step.IDLE:
                return Plan(Action.GO_ON, self.round)
            raise self._aborted(f"after a loss: {reason}") from None
        plan = decide(statuses | {self.rank: self._status()}, quorum(self.session.world_size))
        if self.step is Step.IDLE:
            return plan
        self._now.supplier = plan.supplier if plan.action is Action.SUPPLY else -1
        if plan.round < self.round:  # others are still in the round before, which this party has finished
            if plan.action is not Action.REVEAL:
                self._restart()
        elif plan.action is Action.END:
            self._aborted(plan.reason)
            raise TooFewParties(plan.reason)
        elif plan.action is Action.BURN:
            raise self._aborted(plan.reason)
        elif plan.action is Action.RESTART:
            self._restart()
        elif plan.action is Action.COMMIT:
            self.step = Step.COMMIT
        return plan

    def assistance(self, plan: Plan) -> tuple[bytes, int] | None:
        """What this party, which has finished the round that others have not, repeats for them; its slot's size."""
        if plan.action is not Action.REVEAL or (self.round == plan.round and self.step is not Step.IDLE):
            return None
        kept = self._past.revealed[1] if self._past.revealed and self._past.revealed[0] == plan.round else b""
        return kept, self._size(Step.REVEAL)

    def assisted(self) -> None:
        """The others have finished the round before: a new attempt at this one, if one is under way."""
        if self.step is not Step.IDLE:
            self._restart()

    def _restart(self) -> None:
        if self._rule.committed(self.round):
            raise self._aborted("a new attempt was asked for after this party had committed to a sum")
        now = self._now
        self._start(now.x, now.attempt.place.state, now.contributors)

    # -- the end of a round -----------------------------------------------------------------------------------

    def _finish(self, now: Progress) -> None:
        self.result, self._past.ended = now.total, (self.round, Outcome.DONE)
        self._past.revealed = (self.round, now.messages[Step.REVEAL])
        self._progress, self.step = None, Step.IDLE

    def _aborted(self, reason: str) -> RoundAborted:
        """Forget the attempt and its keys."""
        self._past.ended = (self.round, Outcome.ABORTED)
        self._progress, self.step = None, Step.IDLE
        return RoundAborted(f"round {self.round}: {reason}")

    @property
    def _now(self) -> Progress:
        if self._progress is None:
            raise RuntimeError("no round is under way")
        return self._progress

    @property
    def _place(self) -> RoundPlace:
        """Of this step's messages; those with the keys say from which model the round starts."""
        place = self._now.attempt.place
        return replace(place, state=NO_STATE) if self.step is Step.KEYS else place

    @property
    def _here(self) -> RoundPlace:
        """Of a status: the members that were decided last, whatever the round."""
        return RoundPlace(-1, self.epoch, self.members)
