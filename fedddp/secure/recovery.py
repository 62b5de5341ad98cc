"""What the survivors do after a loss: one rule, applied by each to the same statuses, so that all decide alike.

A gathering completes on some ranks and not on others when one dies, so survivors stand at most one step apart. The rule
is for the sake of the result: whoever lies to it, or shows others different statuses, can make a round abort. What is
revealed does not depend on it (reveal.py).

| where they stand                            | what follows                                                      |
|---------------------------------------------|-------------------------------------------------------------------|
| nobody has the sum                          | a new attempt with fresh keys among the survivors                 |
| some have it, the others have masked        | the lowest of them supplies it to the others                      |
| all have the sum                            | commitments again, then reveal; a party that died is still in it  |
| some have finished the round                | they repeat what they revealed, so that the others finish         |
| some have aborted it, or anything else      | aborted                                                           |
| fewer than the quorum are left              | the end: what some may have finished is lost to the others        |
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Self

_FIELDS = struct.Struct(">BqqqB")


class Step(IntEnum):
    """What a party does next; IDLE between rounds."""

    IDLE, KEYS, SHARES, MASK, COMMIT, REVEAL = range(6)


class Outcome(IntEnum):
    NONE, DONE, ABORTED = range(3)


class Action(Enum):
    GO_ON = "nobody has a round under way"
    RESTART = "a new attempt"
    SUPPLY = "one supplies the sum"
    COMMIT = "commit again"
    REVEAL = "reveal again"
    BURN = "abort"
    END = "end: too few are left"


@dataclass(frozen=True)
class Status:
    """Where a party stands, and how the last round ended for it. ``epoch``: of the attempt under way, -1 for none."""

    step: Step
    round: int
    epoch: int
    last_round: int
    last_outcome: Outcome

    def pack(self) -> bytes:
        return _FIELDS.pack(self.step, self.round, self.epoch, self.last_round, self.last_outcome)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises ValueError for bytes that are no status."""
        if len(body) != _FIELDS.size:
            raise ValueError(f"a status has {_FIELDS.size} bytes, not {len(body)}")
        step, round, epoch, last_round, outcome = _FIELDS.unpack(body)
        return cls(Step(step), round, epoch, last_round, Outcome(outcome))


STATUS_BYTES = _FIELDS.size


@dataclass(frozen=True)
class Plan:
    """What to do in ``round``; ``supplier``: the rank that supplies the sum."""

    action: Action
    round: int
    reason: str = ""
    supplier: int = -1


def decide(statuses: Mapping[int, Status], quorum: int) -> Plan:
    """The plan of all survivors; it depends on nothing but their statuses.

    ``quorum``: how many must be left to finish a sum that is made. Whether enough are left to make one, and so for any
    further round, each party asks itself.
    """
    plan = _by_the_rule(statuses)
    if plan.action in (Action.BURN, Action.RESTART, Action.GO_ON) or len(statuses) >= quorum:
        return plan
    return replace(plan, action=Action.END, reason=f"{len(statuses)} parties are left, {quorum} are needed")


def _by_the_rule(statuses: Mapping[int, Status]) -> Plan:
    last = max(status.last_round for status in statuses.values())
    busy = {rank: status for rank, status in statuses.items() if status.step is not Step.IDLE}
    behind = {rank: status for rank, status in busy.items() if status.round <= last}
    if behind:
        outcomes = {status.last_outcome for status in statuses.values() if status.last_round == last}
        if Outcome.ABORTED in outcomes:
            return Plan(Action.BURN, last, "aborted on another rank before a rank was lost")
        if any(status.round != last or status.step is not Step.REVEAL for status in behind.values()):
            return Plan(Action.BURN, last, "survivors stand too far apart")
        return Plan(Action.REVEAL, last)
    if not busy:
        return Plan(Action.GO_ON, last)
    round = max(status.round for status in busy.values())
    if any(status.round != round for status in busy.values()):
        return Plan(Action.BURN, round, "survivors stand in different rounds")
    steps = {status.step for status in busy.values()}
    if max(steps) < Step.COMMIT:
        return Plan(Action.RESTART, round)
    if len({status.epoch for status in busy.values()}) > 1 or len(busy) < len(statuses) or min(steps) < Step.MASK:
        return Plan(Action.BURN, round, "a rank was lost while some had the sum and others not their shares")
    if Step.MASK in steps:
        if Step.REVEAL in steps:
            return Plan(Action.BURN, round, "a rank was lost while some revealed and others had no sum")
        return Plan(Action.SUPPLY, round, "", min(rank for rank in busy if busy[rank].step is Step.COMMIT))
    return Plan(Action.COMMIT if Step.COMMIT in steps else Action.REVEAL, round)
