"""What ranks tell each other through the launcher's store, beside the collectives: who is where, and who is left.

Each rank notes which phase it is in, which collective it has reached, and the number of the note: a rank that works
renews it every few seconds. How many steps it made is not told: that could show which of its clients were drawn. When
a collective does not complete the notes say who is missing. When a rank asks to go on without those who are missing,
rank 0 decides who is left: a member that neither asks too nor renews its note within the grace period is gone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ..errors import first_line
from . import interrupt

__all__ = ["CommError", "LostRank", "Notes"]


class CommError(RuntimeError):
    """A collective that cannot complete, or ranks that do not fit together; says which rank and where it was."""


class LostRank(CommError):
    """A collective cannot complete: a rank died or stands still, or others want to go on without one.

    The tensor handed to it is lost: the transport may still write to it. `Comm.regroup` goes on with who is left.
    """


class Store(Protocol):
    """The part of torch.distributed.Store that is used."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class Notes:
    """One rank's side of the store. ``tell(key, value, purpose)`` is called before each write: it may refuse it."""

    def __init__(
        self, store: Store, rank: int, world_size: int, timeout: float, tell: Callable[[str, str, str], None]
    ) -> None:
        self._store: Store | None = store
        self._rank, self._timeout, self._tell = rank, timeout, tell
        self.members = tuple(range(world_size))
        self.reached, self.phase = 0, "start"
        self._written = 0
        self.epoch = 0
        """How often the members were decided anew."""

    def put(self, key: str, value: str, purpose: str) -> None:
        store = self._store  # `close` may take it away while the thread that tells of progress writes
        if store is not None:
            self._tell(key, value, purpose)
            store.set(key, value)

    def close(self) -> None:
        self._store = None

    # -- where every rank is ----------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Note what this rank does now."""
        self.phase = phase
        try:
            self._write()
        except CommError:
            raise
        except RuntimeError as error:
            raise CommError(f"{phase}: the launcher's store is gone ({first_line(error)})") from error

    def _write(self) -> None:
        self._written += 1
        self.put(f"at/{self._rank}", f"{self.reached}|{self._written}|{self.phase}", "progress")

    def diagnosis(self) -> str:
        """Who is missing from the collective that this rank waits in."""
        time.sleep(0.2)  # let the others' last notes arrive
        missing = []
        for other in self.members:
            try:
                reached, phase, _ = self._read(other)
            except RuntimeError:
                return "the store is gone, and with it the launcher or the rank that held it (rank 0)"
            if reached < self.reached:
                missing.append(
                    f"rank {other} is missing, last seen in {phase!r}" if phase else f"rank {other} never came"
                )
        return "; ".join(missing) or "every rank came, one left while its message was on the way"

    def of_the_missing(self) -> str:
        """The notes of those that have not come; equal as long as they stand still."""
        notes = {other: self._read(other) for other in self.members}
        return repr({other: note for other, note in notes.items() if note[0] < self.reached})

    def _read(self, other: int) -> tuple[int, str, str]:
        """The collective that a rank has reached, its phase, and a number that grows while it works; (-1, "", "")."""
        assert self._store is not None
        key = f"at/{other}"
        if not self._store.check([key]):
            return -1, "", ""
        reached, count, phase = self._store.get(key).decode().split("|", 2)
        return int(reached), phase, count

    def await_all(self) -> None:
        """Wait for every rank's first note: forming the process group itself cannot be interrupted."""
        self._await("at")

    def await_formed(self) -> None:
        """Wait until the process group stands on every rank: one that left before would take it from under the others,
        who would not know whom to name."""
        self.put(f"formed/{self._rank}", "", "progress")
        self._await("formed")

    def _await(self, note: str) -> None:
        assert self._store is not None
        keys, deadline = [f"{note}/{rank}" for rank in self.members], time.monotonic() + self._timeout
        while not self._all_there(keys):
            interrupt.check()
            if time.monotonic() > deadline:
                raise CommError(
                    f"start: waited {self._timeout:g} s; {self.diagnosis()} (run.timeout sets how long to wait)"
                )
            time.sleep(0.01)

    def _all_there(self, keys: list[str]) -> bool:
        assert self._store is not None
        try:
            return self._store.check(keys)
        except RuntimeError as error:  # whoever held the store waited less long, or left
            raise CommError(f"start: {self.diagnosis()}") from error

    @property
    def renewal(self) -> float:
        """Seconds between two notes of a rank that works."""
        return min(2.0, self._timeout / 6)

    def tell_of_progress(self) -> None:
        """While this rank works between collectives, renew its note as long as it passes safe points (a thread)."""
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        told = -1
        while self._store is not None:
            time.sleep(self.renewal)
            if interrupt.passed != told:
                told = interrupt.passed
                try:
                    self._write()
                except RuntimeError:
                    return

    # -- whether the ranks fit together -----------------------------------------------------------------------

    def gather(self, key: str, value: str) -> list[bytes]:
        """Every rank's ``value``."""
        assert self._store is not None
        self.put(f"{key}/{self._rank}", value, key)
        return [self._store.get(f"{key}/{rank}") for rank in self.members]

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Raise CommError naming this rank and the entries that differ from rank 0's."""
        assert self._store is not None
        if self._rank == 0:
            self.put("signature", json.dumps(dict(signature)), "signature")
        theirs = json.loads(self._store.get("signature"))
        differ = [key for key in sorted({*theirs, *signature}) if theirs.get(key) != signature.get(key)]
        if differ:
            told = "; ".join(f"{k} is {signature.get(k)} here, {theirs.get(k)} on rank 0" for k in differ[:4])
            raise CommError(f"rank {self._rank} does not match rank 0: {told}")

    # -- who is left ------------------------------------------------------------------------------------------

    def someone_asks(self) -> bool:
        """Whether a rank wants to go on without those that are missing."""
        return self._store is not None and self._store.check([f"regroup/{self.epoch}"])

    def agree(self, grace: float) -> tuple[int, ...]:
        """Wait until rank 0 has decided who is left; the new members. Raises CommError if that does not include us."""
        store, epoch = self._store, self.epoch
        assert store is not None
        grace = max(min(grace, self._timeout), 2.5 * self.renewal)
        try:
            self.put(f"regroup/{epoch}/{self._rank}", str(self.reached), "regroup")
            self.put(f"regroup/{epoch}", "asked", "regroup")
            if self._rank == 0:
                left = self._decide(store, grace)
                reached = max(int(store.get(f"regroup/{epoch}/{rank}")) for rank in left)
                self.put(f"regroup/{epoch}/members", json.dumps([reached, left]), "regroup")
            else:
                self._await_decision(store, grace)
            reached, left = json.loads(store.get(f"regroup/{epoch}/members"))
        except CommError:
            raise
        except RuntimeError as error:
            raise CommError(
                f"regroup: the store is gone, and with it the rank that held it (rank 0) ({error})"
            ) from None
        if self._rank not in left:
            raise CommError(f"regroup: rank {self._rank} stood still for too long; ranks {left} went on without it")
        self.epoch, self.reached, self.members = epoch + 1, reached, tuple(left)
        self.enter("regroup")
        return self.members

    def _decide(self, store: Store, grace: float) -> list[int]:
        """Rank 0: all members that ask, once each of the others has stood still for the grace period."""
        waiting = {rank: _Stillness() for rank in self.members}
        while waiting:
            interrupt.check()
            for rank, stillness in list(waiting.items()):
                if store.check([f"regroup/{self.epoch}/{rank}"]) or stillness.lasted(self._read(rank)) > grace:
                    del waiting[rank]
            time.sleep(0.02)
        return [rank for rank in self.members if store.check([f"regroup/{self.epoch}/{rank}"])]

    def _await_decision(self, store: Store, grace: float) -> None:
        stillness = _Stillness()
        while not store.check([f"regroup/{self.epoch}/members"]):
            interrupt.check()
            if stillness.lasted(self._read(0)) > grace:
                raise CommError(
                    f"regroup: rank 0, which decides who is left, is gone, last seen in {self._read(0)[1]!r}"
                )
            time.sleep(0.02)


class _Stillness:
    """For how long a note has not changed."""

    def __init__(self) -> None:
        self._note: object = None
        self._since = time.monotonic()

    def lasted(self, note: object) -> float:
        if note != self._note:
            self._note, self._since = note, time.monotonic()
        return time.monotonic() - self._since
