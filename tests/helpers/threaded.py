"""Ranks as threads of one process, with deaths where a test wants them: the interface of `fedddp.comm.Comm`.

A collective of real ranks completes on some and not on others when one dies. Here a test says which: a `Death` strikes
a rank at its n-th collective of a purpose, "before" it has put in anything (nobody completes), "after" (all others do),
or "split" (only some others do). Who does not complete gets LostRank; once one asks to regroup, so do all that wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedddp.comm import CommError, LostRank

PATIENCE = 20.0


class Died(BaseException):
    """The end of a rank; not an Exception, so that nothing under test survives it."""


@dataclass(frozen=True)
class Death:
    rank: int
    purpose: str
    how: str
    nth: int = 0
    reach: Collection[int] = ()
    """With "split": the ranks that complete."""


@dataclass
class _Slot:
    given: dict[int, Tensor] = field(default_factory=dict)
    total: Tensor | None = None
    reach: set[int] | None = None


class World:
    """What the threads share. ``tamper(purpose, rank, total)`` may alter what a rank receives."""

    def __init__(
        self,
        size: int,
        deaths: Sequence[Death] = (),
        tamper: Callable[[str, int, Tensor], None] | None = None,
    ) -> None:
        self.size, self.deaths, self.tamper = size, deaths, tamper
        self.changed = threading.Condition()
        self.dead: set[int] = set()
        self.groups: list[tuple[int, ...]] = [tuple(range(size))]  # by epoch
        self.asking: list[set[int]] = [set()]
        self.slots: dict[tuple[int, int], _Slot] = {}

    def run(self, body: Callable[[ThreadComm], Any]) -> dict[int, Any]:
        """``body(comm)`` on each rank; what the ranks return, without those that died."""
        results: dict[int, Any] = {}
        errors: list[BaseException] = []

        def life(rank: int) -> None:
            try:
                results[rank] = body(ThreadComm(self, rank))
            except Died:
                pass
            except BaseException as error:
                errors.append(error)
                with self.changed:  # so that nobody waits for this one
                    self.dead.add(rank)
                    self.changed.notify_all()

        threads = [threading.Thread(target=life, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive(), "a rank hangs"
        if errors:
            raise errors[0]
        return results

    def wait(self, reason: Callable[[], bool]) -> None:
        if not self.changed.wait_for(reason, PATIENCE):
            raise AssertionError("a rank waits for others that never come")


class ThreadComm:
    """One rank's end."""

    def __init__(self, world: World, rank: int) -> None:
        self.rank, self.world_size = rank, world.size
        self.members = world.groups[0]
        self.device = torch.device("cpu")
        self.epoch = 0
        self._world, self._at, self._count = world, 0, {}
        self._lost = False

    def gather_bytes(self, mine: bytes, size: int, purpose: str) -> list[bytes]:
        assert len(mine) <= size, purpose
        slots = torch.zeros(len(self.members), 4 + size, dtype=torch.uint8)
        row = len(mine).to_bytes(4, "little") + mine
        slots[self.members.index(self.rank), : len(row)] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        messages = [b""] * self.world_size
        for rank, row in zip(self.members, self.all_reduce(slots, purpose).numpy(), strict=True):
            messages[rank] = row[4 : 4 + int.from_bytes(row[:4].tobytes(), "little")].tobytes()
        return messages

    def all_reduce(self, x: Tensor, purpose: str) -> Tensor:
        world, rank = self._world, self.rank
        nth = self._count.get(purpose, 0)
        self._count[purpose] = nth + 1
        death = next((d for d in world.deaths if (d.rank, d.purpose, d.nth) == (rank, purpose, nth)), None)
        with world.changed:
            if self._lost:
                raise LostRank("the others have not regrouped")
            if death and death.how == "before":
                self._die()
            slot = world.slots.setdefault((self.epoch, self._at), _Slot())
            self._at += 1
            slot.given[rank] = x.clone()
            same = {(tuple(t.shape), t.dtype) for t in slot.given.values()}
            assert len(same) == 1, f"{purpose}: ranks stand in different collectives: {same}"
            if death:
                if death.how == "split":
                    slot.reach = set(death.reach)
                self._die(lambda: self._complete(slot))
            self._complete(slot)
            world.wait(lambda: slot.total is not None or self._broken(slot))
            if slot.total is None or (slot.reach is not None and rank not in slot.reach):
                self._lost = True
                raise LostRank(f"{purpose}: a rank was lost")
            x.copy_(slot.total)
        if world.tamper:
            world.tamper(purpose, rank, x)
        return x

    def sign_members(self, signer) -> None:
        pass  # there is no store

    def regroup(self, grace: float = 0.0) -> tuple[int, ...]:
        world, epoch = self._world, self.epoch
        with world.changed:
            world.asking[epoch].add(self.rank)
            world.changed.notify_all()
            world.wait(
                lambda: len(world.groups) > epoch + 1 or world.asking[epoch] >= set(world.groups[epoch]) - world.dead
            )
            if len(world.groups) == epoch + 1:
                world.groups.append(tuple(sorted(set(world.groups[epoch]) - world.dead)))
                world.asking.append(set())
                world.changed.notify_all()
            self.epoch, self._at, self._lost = epoch + 1, 0, False
            self.members = world.groups[self.epoch]
        if 0 not in self.members:
            raise CommError("regroup: rank 0 is gone")
        return self.members

    def _broken(self, slot: _Slot) -> bool:
        missing = set(self.members) - set(slot.given)
        return bool(missing & self._world.dead or self._world.asking[self.epoch])

    def _complete(self, slot: _Slot) -> None:
        if set(slot.given) == set(self.members):
            slot.total = torch.stack(list(slot.given.values())).sum(0, dtype=slot.given[self.rank].dtype)
            self._world.changed.notify_all()

    def _die(self, last: Callable[[], None] = lambda: None) -> None:
        last()
        self._world.dead.add(self.rank)
        self._world.changed.notify_all()
        raise Died
