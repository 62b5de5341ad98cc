"""One party of secure aggregation as a state machine without a transport: messages in, messages out.

    begin -> KEYS -> SHARES -> MASK -> COMMIT -> REVEAL -> idle, with the sum in `result`

In each step but MASK a party gives `message` and takes everybody's in `receive`; in MASK it gives `masked` and takes
the sum over the members in `summed`. Whoever finds something wrong says so in its next message, so that all burn the
round together. After a loss: `regrouped`, then everybody's `status` into `follow`, which takes recovery.py's rule.

What a party holds to on its own, whatever others say: one commitment a round, one kind of share for each other party,
no new attempt at a round once it has committed, no key in two attempts, nothing for a sum that is not over a quorum of
the attempt's members with everybody in it who is left.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..types import RoundBurnt
from . import masks
from .attempt import Attempt, digest, reveal_bytes, shares_bytes
from .envelope import OVERHEAD, REASON_BYTES, Place, Refused, RefusedElsewhere, digest_of, seal, seal_refusal, unseal
from .graph import draw, most_neighbours, shape_for
from .hello import LEAST_PARTIES, Session
from .recovery import Action, Outcome, Plan, Status, Step, decide

KINDS = {Step.KEYS: b"keys", Step.SHARES: b"shares", Step.COMMIT: b"commit", Step.REVEAL: b"reveal"}


class TooFewParties(RuntimeError):
    """So many ranks are lost that no further round can be kept secret, or be finished."""


def quorum(world_size: int) -> int:
    """How many of a session's parties must be left: all but a third. As many shares restore a secret."""
    return max(2, world_size - world_size // 3)


class Party:
    """``shape``: neighbours and threshold from 32 parties on, for tests. ``random_bytes``: a seam for tests."""

    def __init__(
        self,
        session: Session,
        *,
        shape: tuple[int, int] | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        n = session.world_size
        self.session, self.rank = session, session.rank
        self.members: tuple[int, ...] = tuple(range(n))
        self.step, self.round = Step.IDLE, -1
        self.result: Tensor | None = None
        self._shape, self._random = shape or shape_for(n), random_bytes
        most = most_neighbours(n, self._shape)
        room = {Step.KEYS: 64, Step.SHARES: shares_bytes(most), Step.COMMIT: 64, Step.REVEAL: reveal_bytes(most)}
        self._sizes = {step: OVERHEAD + max(size, REASON_BYTES) for step, size in room.items()}
        self.status_size = OVERHEAD + Status.size(n)
        self._next_serial = 0
        self._last: tuple[int, Outcome] = (-1, Outcome.NONE)
        self._kept: tuple[int, bytes] | None = None  # what this party revealed last, should others still need it
        self._drop()

    def _drop(self) -> None:
        """Forget an attempt and its keys."""
        self._attempt: Attempt | None = None
        self._messages: dict[Step, bytes] = {}
        self._x: Tensor | None = None
        self._total: Tensor | None = None
        self._summed: tuple[int, ...] = ()
        self._commitment = b""
        self._fault = ""
        self._supply: Plan | None = None

    # -- a round ----------------------------------------------------------------------------------------------

    def begin(self, round: int, x: Tensor) -> None:
        """Start a round with this party's vector [L], int64 or int32, which must not change until the round is over.

        Raises ValueError for a round that is not later than all before: a burnt round is not repeated, because sums
        of the same vectors over two sets of parties would give the difference away. Raises TooFewParties.
        """
        if self.step is not Step.IDLE or round <= self._last[0]:
            raise ValueError(f"round {round} does not follow round {max(self.round, self._last[0])}")
        masks.check(x)
        self.round, self.result = round, None
        self._check_number()
        self._x = x
        self._start()

    def _check_number(self) -> None:
        left, needed = len(self.members), max(LEAST_PARTIES, quorum(self.session.world_size))
        if left < needed:
            self._burnt("too few parties")
            raise TooFewParties(
                f"{left} of {self.session.world_size} parties are left, {needed} are needed; start the run "
                "again with fewer ranks, from its checkpoint"
            )

    def _start(self) -> None:
        """A new attempt with the members of now, under keys that were never used."""
        x = self._x
        self._drop()
        self._x = x
        self.step, serial = Step.KEYS, self._next_serial
        self._next_serial += 1
        seed = self.session.transcript + struct.pack(">qq", self.round, serial)
        graph = draw(self.members, quorum(self.session.world_size), seed, self._shape)
        self._attempt = Attempt(self.session, self.round, serial, graph, self._random)

    @property
    def size(self) -> int:
        """The most bytes that a message of this step has, on any party."""
        return self._sizes[self.step]

    def message(self) -> bytes:
        """This party's message of this step; the same again if it is asked for again."""
        if self.step not in self._messages:
            self._messages[self.step] = self._compose()
        return self._messages[self.step]

    def _compose(self) -> bytes:
        attempt, place = self._now(), self._place(self.step)
        if self._fault:
            return seal_refusal(self.session, place, self._fault)
        if self.step is Step.KEYS:
            body = attempt.keys()
        elif self.step is Step.SHARES:
            body = attempt.shares()
        elif self.step is Step.COMMIT:
            body = self._commitment
        else:
            body = attempt.reveal(self._summed)
        return seal(self.session, place, body)

    def receive(self, messages: Sequence[bytes]) -> None:
        """Everybody's messages of this step, by original rank. Raises RoundBurnt; moves on to the next step."""
        attempt, step = self._now(), self.step
        try:
            self._use(attempt, step, self._read(step, messages))
        except RefusedElsewhere as reason:
            raise self._burnt(str(reason)) from None
        except Refused as reason:
            self._fail(str(reason))
        if step is Step.REVEAL:
            if self._fault:
                raise self._burnt(self._fault)
            self._finish()
        else:
            self.step = Step(step + 1)

    def _use(self, attempt: Attempt, step: Step, bodies: Mapping[int, bytes]) -> None:
        if step is Step.KEYS:
            attempt.agree(bodies)
        elif step is Step.SHARES:
            attempt.accept(bodies)
        elif step is Step.COMMIT:
            for rank, body in bodies.items():
                if body != self._commitment:
                    what = "is about other parties" if body[:32] != self._commitment[:32] else "has another sum"
                    raise Refused(f"rank {rank} {what} than rank {self.rank}")
            if unfit := self._unfit(self._summed):
                raise Refused(unfit)
        else:
            assert self._total is not None
            attempt.unmask(self._total, self._summed, bodies)

    def _read(self, step: Step, messages: Sequence[bytes]) -> dict[int, bytes]:
        place, bodies, complaints = self._place(step), {}, []
        for rank in self.members:
            try:
                bodies[rank] = unseal(self.session, place, rank, messages[rank])
            except Refused as reason:
                complaints.append(reason)
        if messages[self.rank] != self._messages[step]:
            complaints.append(Refused(f"the message of rank {self.rank} itself came back altered"))
        if complaints:
            raise min(complaints, key=lambda complaint: not isinstance(complaint, RefusedElsewhere))
        return bodies

    # -- the sum ----------------------------------------------------------------------------------------------

    @property
    def sums(self) -> bool:
        """Whether a sum over the members comes next, and not a message."""
        return self.step is Step.MASK or self._supply is not None

    def masked(self) -> Tensor:
        """What this party puts into the sum [L]: new memory each time, for a collective to sum in place.

        Asked for again in the same attempt it is the same vector under the same masks, computed again.
        """
        if self._supply is not None:
            held = self._total if self._total is not None else self._x
            assert held is not None
            return held.clone() if self._supply.supplier == self.rank else torch.zeros_like(held)
        assert self._x is not None
        return torch.zeros_like(self._x) if self._fault else self._now().mask(self._x.clone())

    def summed(self, total: Tensor) -> None:
        """The sum over the members [L], now this party's. Nothing else is ever committed to in this round."""
        members = self._supply.summed if self._supply else self.members
        commitment = digest_of(members) + digest(total)
        self._supply = None
        if self._commitment and commitment != self._commitment:
            self._fail(f"rank {self.rank} got another sum the second time")
        if not self._commitment:
            self._total, self._summed, self._commitment = total, members, commitment
        self.step = max(self.step, Step.COMMIT)

    def _unfit(self, summed: Sequence[int]) -> str:
        """Why this party reveals nothing for a sum over these parties; "" if it may.

        A set that another party names could otherwise have this one's own masks taken off: by fewer than the quorum
        with the rest passed off as lost, or filled up with parties that are not in the attempt.
        """
        attempt, needed = self._now().graph.members, quorum(self.session.world_size)
        if len(summed) < max(LEAST_PARTIES, needed) or len(self.members) < needed:
            return (
                f"{len(summed)} parties in the sum, {len(self.members)} left: {max(LEAST_PARTIES, needed)} and "
                f"{needed} are needed"
            )
        if not set(self.members) <= set(summed) <= set(attempt):
            return f"a sum over {list(summed)} is not over parties of {list(attempt)} with all of {list(self.members)}"
        return ""

    # -- after a loss -----------------------------------------------------------------------------------------

    def regrouped(self, members: Sequence[int]) -> None:
        """Who is left."""
        self.members = tuple(sorted(members))

    def status(self) -> bytes:
        """Where this party stands, for the other survivors."""
        serial = self._attempt.serial if self._attempt else -1
        status = Status(self.step, self.round, serial, self._next_serial, *self._last, self._summed)
        return seal(self.session, self._status_place(), status.pack(self.session.world_size))

    def follow(self, messages: Sequence[bytes]) -> Plan:
        """Take up what the survivors' statuses ask for. Raises RoundBurnt or TooFewParties."""
        statuses = {}
        try:
            for rank in self.members:
                body = unseal(self.session, self._status_place(), rank, messages[rank])
                statuses[rank] = Status.unpack(body, self.session.world_size)
        except ValueError as reason:
            if self.step is Step.IDLE:
                return Plan(Action.GO_ON, self.round, self._next_serial)
            raise self._burnt(f"after a loss: {reason}") from None
        plan = decide(statuses, quorum(self.session.world_size))
        self._next_serial, self._supply = plan.next_serial, None
        if self.step is Step.IDLE:
            return plan
        if plan.round < self.round:  # others are still in the round before, which this party has finished
            if plan.action is not Action.REVEAL:
                self._restart()
        elif plan.action is Action.END:
            self._burnt(plan.reason)
            raise TooFewParties(plan.reason)
        elif plan.action is Action.BURN:
            raise self._burnt(plan.reason)
        elif plan.action is Action.RESTART:
            self._restart()
        elif plan.makes_a_sum:
            self._check_number()
        elif plan.action is Action.SUPPLY:
            if self._commitment and plan.summed != self._summed:
                raise self._burnt("a sum over other parties would take the place of the one committed to")
            if unfit := self._unfit(plan.summed):
                raise self._burnt(unfit)
            self._supply = plan
        elif plan.action is Action.COMMIT:
            self.step = Step.COMMIT
        return plan

    def assistance(self, plan: Plan) -> tuple[bytes, int] | None:
        """What this party, which has finished the round that others have not, repeats for them; its slot's size."""
        if plan.action is not Action.REVEAL or (self.round == plan.round and self.step is not Step.IDLE):
            return None
        kept = self._kept[1] if self._kept and self._kept[0] == plan.round else b""
        return kept, self._sizes[Step.REVEAL]

    def assisted(self) -> None:
        """The others have finished the round before: a new attempt at this one, if one is under way."""
        if self.step is not Step.IDLE:
            self._restart()

    def _restart(self) -> None:
        if self._commitment:
            raise self._burnt("a new attempt was asked for after this party had committed to a sum")
        self._check_number()
        self._start()

    # -- the end of a round -----------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.result, self._last = self._total, (self.round, Outcome.DONE)
        self._kept = (self.round, self._messages[Step.REVEAL])
        self._drop()
        self.step = Step.IDLE

    def _burnt(self, reason: str) -> RoundBurnt:
        self._last = (self.round, Outcome.BURNT)
        self._drop()
        self.step = Step.IDLE
        return RoundBurnt(f"round {self.round}: {reason}")

    def _fail(self, reason: str) -> None:
        self._fault = self._fault or reason

    def _now(self) -> Attempt:
        if self._attempt is None:
            raise RuntimeError("no round is under way")
        return self._attempt

    def _place(self, step: Step) -> Place:
        attempt = self._now()
        return Place(KINDS[step], self.round, attempt.serial, digest_of(attempt.graph.members))

    def _status_place(self) -> Place:
        return Place(b"status", -1, -1, digest_of(self.members))
