"""Who is left after a loss: asked for and decided through the launcher's store.

A rank that wants to go on without others asks, and each of these asks too as soon as it hears of it. One decides: the
launcher where it has started the ranks for that (`coordinator`), else rank 0. It waits for every member until that asks
or is lost (for rank 0: makes no progress for the grace period), and writes down who has asked, with what each has
asked.

With a `Signer` every entry is signed by the rank that it is of, for this run and epoch, and what is not is as good as
not there: a decision holds if rank 0 has signed it and every rank in it has asked. So who writes to the store without
a key cannot decide who is left. It can make a rank look lost, as if it cut the rank's cable, or stop the run. What the
launcher decides is not signed: it is trusted, as it has started the ranks.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from . import interrupt
from .heartbeat import CommError, Heartbeat
from .ledger import Purpose

LAUNCHER = -1
"""The launcher's number among the ranks."""


class Signer(Protocol):
    """This rank's signature, and whether another rank signed a statement."""

    def sign(self, statement: bytes) -> bytes: ...

    def signed(self, rank: int, statement: bytes, signature: bytes) -> bool: ...


class Unsigned:
    """A signer for runs without keys: everything in the store is believed."""

    def sign(self, statement: bytes) -> bytes:
        return b""

    def signed(self, rank: int, statement: bytes, signature: bytes) -> bool:
        return True


class Membership:
    """One rank's part in deciding who is left, or the launcher's.

    Args:
        heartbeat: of this rank; its members, epoch and collective change with each decision.
        decider: the rank that decides, or `LAUNCHER`.

    Attributes:
        signer: signs and checks entries.
    """

    def __init__(self, heartbeat: Heartbeat, decider: int = 0) -> None:
        self.signer: Signer = Unsigned()
        self._beat, self._decider = heartbeat, decider
        self._who = f"rank {decider}" if decider != LAUNCHER else "the launcher"

    def agree(self, grace: float) -> tuple[int, ...]:
        """Wait until it is decided who is left; the new members. Raises CommError if that does not include us.

        Of members beyond the number of ranks, only the launcher decides: processes that join.
        """
        beat = self._beat
        grace = max(min(grace, beat.timeout), 2.5 * beat.interval)
        try:
            self._ask()
            beat.put(f"regroup/{beat.epoch}", "asked", Purpose.REGROUP)
            asked = self._decide(grace) if beat.rank == self._decider else self._await_decision(grace)
        except CommError:
            raise
        except RuntimeError as error:
            raise CommError(
                f"regroup: the store is gone, and with it the rank that held it ({self._who}) ({error})"
            ) from None
        left = sorted(asked)
        if not left:
            raise CommError("regroup: too few ranks are left to go on (--min-ranks)")
        if beat.rank not in left:
            raise CommError(
                f"regroup: rank {beat.rank} went without progress for too long; ranks {left} continue without it"
            )
        beat.epoch, beat.reached, beat.members = beat.epoch + 1, max(asked.values()), tuple(left)
        beat.enter("regroup")
        return beat.members

    # -- what ranks ask for -----------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask to go on, also if somebody has overwritten what this rank asked before."""
        beat = self._beat
        key = f"regroup/{beat.epoch}/{beat.rank}"
        entry = self._sealed(key, str(beat.reached))
        if not beat.store.check([key]) or beat.store.get(key) != entry.encode():
            beat.put(key, entry, Purpose.REGROUP)

    def _asked(self, rank: int) -> str | None:
        """The entry of a rank that has asked."""
        key = f"regroup/{self._beat.epoch}/{rank}"
        if not self._beat.store.check([key]):
            return None
        entry = self._beat.store.get(key).decode(errors="replace")
        return entry if self._reached(rank, entry) is not None else None

    def _reached(self, rank: int, entry: str) -> int | None:
        """The collective that a rank had reached as it asked; None for an entry that is not of it."""
        text = self._opened(f"regroup/{self._beat.epoch}/{rank}", rank, entry)
        return int(text) if text is not None and text.isdecimal() else None

    # -- the decision -----------------------------------------------------------------------------------------

    def _decide(self, grace: float) -> dict[int, int]:
        """On rank 0: all members that ask, once each of the others has made no progress for the grace period."""
        entries = self.collect(lambda rank, still: still > grace, self._ask)
        self.publish(entries)
        return {rank: self._reached(rank, entry) or 0 for rank, entry in entries.items()}

    def collect(self, lost: Callable[[int, float], bool], meanwhile: Callable[[], None]) -> dict[int, str]:
        """The entries of all members that ask, once each of the others is ``lost``.

        Args:
            lost: called with a rank and the seconds for which its heartbeat has not changed.
            meanwhile: called again and again while waiting.
        """
        beat, entries = self._beat, {}
        waiting = {rank: Stillness() for rank in beat.members}
        while waiting:
            interrupt.check()
            for rank, stillness in list(waiting.items()):
                entry = self._asked(rank)
                if entry is not None:
                    entries[rank] = entry
                if entry is not None or lost(rank, stillness.lasted(beat.read(rank))):
                    del waiting[rank]
            meanwhile()
            time.sleep(0.02)
        late = {rank: entry for rank in set(beat.members) - set(entries) if (entry := self._asked(rank)) is not None}
        return entries | late

    def publish(self, entries: Mapping[int, str]) -> None:
        """Write down who is left, with the entry of each. Its key in the store is read by all that have asked."""
        key = f"regroup/{self._beat.epoch}/members"
        self._beat.put(key, self._sealed(key, json.dumps(dict(entries))), Purpose.REGROUP)

    def _await_decision(self, grace: float) -> dict[int, int]:
        beat, stillness = self._beat, Stillness()
        while (decision := self._decision()) is None:
            interrupt.check()
            self._ask()
            if stillness.lasted(beat.read(self._decider)) > grace:
                raise CommError(
                    f"regroup: {self._who}, which decides who is left, is lost, last seen in "
                    f"{beat.read(self._decider)[1]!r}"
                )
            time.sleep(0.02)
        return decision

    def _decision(self) -> dict[int, int] | None:
        """The members that were decided on, and what collective each had reached; None if there are none yet."""
        key = f"regroup/{self._beat.epoch}/members"
        if not self._beat.store.check([key]):
            return None
        text = self._opened(key, self._decider, self._beat.store.get(key).decode(errors="replace"))
        try:
            entries = {int(rank): str(entry) for rank, entry in json.loads(text or "").items()}
        except (ValueError, AttributeError):
            return None
        asked = {rank: self._reached(rank, entry) for rank, entry in entries.items()}
        possible = asked if self._decider == LAUNCHER else self._beat.members
        known = {rank: reached for rank, reached in asked.items() if reached is not None and rank in possible}
        return known if self._decider in (LAUNCHER, *known) and len(known) == len(asked) else None

    # -- signatures -------------------------------------------------------------------------------------------

    def _sealed(self, key: str, text: str) -> str:
        """An entry with this rank's signature."""
        return f"{text}|{self.signer.sign(f'{key}|{text}'.encode()).hex()}"

    def _opened(self, key: str, rank: int, entry: str) -> str | None:
        """The text of an entry that ``rank`` has signed for ``key``; None for another."""
        text, bar, signature = entry.rpartition("|")
        try:
            signed = bar and self.signer.signed(rank, f"{key}|{text}".encode(), bytes.fromhex(signature))
        except ValueError:
            return None
        return text if signed else None


class Stillness:
    """Measures how long a rank's message has not changed."""

    def __init__(self) -> None:
        self._message: object = None
        self._since = time.monotonic()

    def lasted(self, message: object) -> float:
        """Seconds since the message changed."""
        if message != self._message:
            self._message, self._since = message, time.monotonic()
        return time.monotonic() - self._since
