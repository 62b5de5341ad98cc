"""What the survivors do after a loss: one rule, applied by each to the same statuses, so that all decide alike.

A gathering completes on some ranks and not on others when one dies, so survivors stand at most one step apart. The rule
keeps two promises: of one round only one sum is ever unmasked, and a sum that one party has committed to is finished or
burnt, never replaced. Both are also held by each party on its own (party.py), whatever the statuses say; and so is who
may be in a sum, which a status only claims.

| where they stand                            | what follows                                                      |
|---------------------------------------------|-------------------------------------------------------------------|
| nobody has all shares, or not everybody     | a new attempt with fresh keys among the survivors                 |
| all have masked, none has the sum           | the same masked vectors are summed again, among the survivors     |
| some have the sum                           | the lowest of them supplies it to the others                      |
| all have the sum                            | commitments again, then reveal; a party that died is still in it  |
| some have finished the round                | they repeat what they revealed, so that the others finish         |
| some have burnt it, or anything else        | burnt                                                             |
| fewer than the quorum are left              | the end: what some may have finished is lost to the others        |
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

_FIELDS = struct.Struct(">BqqqqB")


class Step(IntEnum):
    """What a party does next; IDLE between rounds."""

    IDLE, KEYS, SHARES, MASK, COMMIT, REVEAL = range(6)


class Outcome(IntEnum):
    NONE, DONE, BURNT = range(3)


class Action(Enum):
    GO_ON = "go on"
    RESTART = "a new attempt"
    SUPPLY = "one supplies the sum"
    COMMIT = "commit again"
    REVEAL = "reveal again"
    BURN = "burn"
    END = "end: too few are left"


@dataclass(frozen=True)
class Status:
    """Where a party stands, and how the last round ended for it. ``serial``: of the attempt under way."""

    step: Step
    round: int
    serial: int
    next_serial: int
    last_round: int
    last_outcome: Outcome
    summed: tuple[int, ...] = ()

    @staticmethod
    def size(world_size: int) -> int:
        return _FIELDS.size + (world_size + 7) // 8

    def pack(self, world_size: int) -> bytes:
        fields = (self.step, self.round, self.serial, self.next_serial, self.last_round, self.last_outcome)
        bits = sum(1 << rank for rank in self.summed)
        return _FIELDS.pack(*fields) + bits.to_bytes((world_size + 7) // 8, "little")

    @classmethod
    def unpack(cls, body: bytes, world_size: int) -> Status:
        """Raises ValueError for bytes that are no status."""
        if len(body) != cls.size(world_size):
            raise ValueError(f"a status has {cls.size(world_size)} bytes, not {len(body)}")
        step, round, serial, next_serial, last_round, outcome = _FIELDS.unpack_from(body)
        bits = int.from_bytes(body[_FIELDS.size :], "little")
        summed = tuple(rank for rank in range(world_size) if bits >> rank & 1)
        return cls(Step(step), round, serial, next_serial, last_round, Outcome(outcome), summed)


@dataclass(frozen=True)
class Plan:
    """What to do in ``round``; ``summed`` and ``supplier`` where one supplies the sum."""

    action: Action
    round: int
    next_serial: int
    reason: str = ""
    summed: tuple[int, ...] = ()
    supplier: int = -1
    idle: bool = False
    """Nobody has a round under way."""
    makes_a_sum: bool = False


def decide(statuses: Mapping[int, Status], quorum: int) -> Plan:
    """The plan of all survivors; it depends on nothing but their statuses.

    ``quorum``: how many must be left to finish a sum that is made. Whether enough are left to make one, and so for any
    further round, each party asks itself.
    """
    plan = _by_the_rule(statuses)
    if plan.action is Action.BURN or plan.makes_a_sum or plan.idle or len(statuses) >= quorum:
        return plan
    return replace(plan, action=Action.END, reason=f"{len(statuses)} parties are left, {quorum} are needed")


def _by_the_rule(statuses: Mapping[int, Status]) -> Plan:
    serial = max(status.next_serial for status in statuses.values())
    last = max(status.last_round for status in statuses.values())
    busy = {rank: status for rank, status in statuses.items() if status.step is not Step.IDLE}
    behind = {rank: status for rank, status in busy.items() if status.round <= last}

    def plan(action: Action, round: int, reason: str = "", summed: tuple[int, ...] = (), supplier: int = -1) -> Plan:
        return Plan(action, round, serial, reason, summed, supplier)

    if behind:
        outcomes = {status.last_outcome for status in statuses.values() if status.last_round == last}
        if Outcome.BURNT in outcomes:
            return plan(Action.BURN, last, "burnt on another rank before a rank was lost")
        if any(status.round != last or status.step is not Step.REVEAL for status in behind.values()):
            return plan(Action.BURN, last, "survivors stand too far apart")
        return plan(Action.REVEAL, last)
    if not busy:
        return replace(plan(Action.GO_ON, last), idle=True)
    round = max(status.round for status in busy.values())
    steps = {status.step for status in busy.values()}
    sums = {status.summed for status in busy.values() if status.step >= Step.COMMIT}
    if any(status.round != round for status in busy.values()) or len(sums) > 1:
        return plan(Action.BURN, round, "survivors stand in different rounds, or have different sums")
    if len({status.serial for status in busy.values()}) > 1 or len(busy) < len(statuses) or min(steps) < Step.MASK:
        if sums:
            return plan(Action.BURN, round, "a rank was lost while some had the sum and others not their shares")
        return replace(plan(Action.RESTART, round), makes_a_sum=True)
    if not sums:
        return replace(plan(Action.GO_ON, round), makes_a_sum=True)
    if Step.MASK in steps:
        if Step.REVEAL in steps:
            return plan(Action.BURN, round, "a rank was lost while some revealed and others had no sum")
        supplier = min(rank for rank, status in busy.items() if status.step is Step.COMMIT)
        return plan(Action.SUPPLY, round, "", sums.pop(), supplier)
    return plan(Action.COMMIT if Step.COMMIT in steps else Action.REVEAL, round)
