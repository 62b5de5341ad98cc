"""Exchange heartbeat messages through the launcher's store: which rank is missing.

A rank's heartbeat message is its phase, the number of the collective it has reached, and the number of the message: a
rank that works renews it every few seconds. The number of steps is not in it, since that could show which of its
clients were drawn. When a collective does not complete, the messages show who is missing. Which ranks are left when one
asks to continue without the missing ones is decided in `membership`.

A `discreet` heartbeat does not tell either how long a rank works: from the beginning of the work to the end of the
next collective the message stays the same but for its number, which is renewed at fixed times, whether the rank works
or waits. When a collective fails, ranks tell where they are, and who is missing is who neither does that nor renews.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from ..errors import first_line
from . import interrupt
from .ledger import Purpose

__all__ = ["CommError", "Heartbeat", "LostRank"]

LEAVING = 30.0
"""Seconds that rank 0 waits for the others at the end: a message that was lost is sent again within them."""
Messages = dict[int, tuple[int, str, str]]
"""Of each rank, as `Heartbeat.read` returns them."""


class CommError(RuntimeError):
    """A collective that cannot complete, or ranks that do not fit together; names the rank and its phase."""


class LostRank(CommError):
    """A collective cannot complete: a rank died or makes no progress, or others continue without one.

    Its tensor is lost: the transport may still write to it. `Comm.regroup` continues with the ranks that are left.
    """


class Store(Protocol):
    """The part of torch.distributed.Store that is used."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class Heartbeat:
    """One rank's side of the store.

    Args:
        store: the launcher's; None for a single rank.
        timeout: seconds without progress before a rank counts as lost.
        account: called with (key, value, purpose) before each write to the store; may refuse it.
    """

    def __init__(
        self,
        store: Store | None,
        rank: int,
        world_size: int,
        timeout: float,
        account: Callable[[str, str, Purpose], None],
    ) -> None:
        self.members = tuple(range(world_size))
        self.reached = 0
        """The number of the collective that this rank has reached."""
        self.epoch = 0
        """How often the members have changed."""
        self.timeout = self.patience = timeout
        """``patience``: seconds to wait for others at start."""
        self.discreet = False
        """Whether no message may depend on how long this rank works."""
        self._open, self.rank, self._account = store, rank, account
        self._phase, self._sent, self._told = "start", 0, (0, "start")
        self._quiet = False

    @property
    def store(self) -> Store:
        assert self._open is not None
        return self._open

    def put(self, key: str, value: str, purpose: Purpose | None) -> None:
        """Write to the store; what has no purpose is not accounted for."""
        store = self._open  # `close` may unset it while the renewing thread writes
        if store is not None:
            if purpose:
                self._account(key, value, purpose)
            store.set(key, value)

    def close(self) -> None:
        """Send no more messages, and end the thread that renews them."""
        self._open = None

    # -- heartbeat messages -----------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Report what this rank does now. Raises CommError if the store is gone."""
        self._phase, self._told, self._quiet = phase, (self.reached, phase), False
        try:
            self.put(f"at/{self.rank}", self._message(), Purpose.PROGRESS)
        except CommError:
            raise
        except RuntimeError as error:
            raise CommError(f"{phase}: the launcher's store is gone ({first_line(error)})") from error

    def work(self, phase: str) -> None:
        """Report that this rank begins work of its own, up to the next collective."""
        self.enter(phase)
        self._quiet = self.discreet

    def join(self, purpose: str) -> None:
        """Report that this rank has reached its next collective."""
        self.reached += 1
        if self._quiet:
            self._phase = purpose
        else:
            self.enter(purpose)

    def joined(self) -> None:
        """Record that the collective is completed: all ranks have worked, whatever each had to do."""
        self._quiet = False

    def _message(self) -> str:
        """The message that was last told, under a number of fixed length: how many there were is no matter of size."""
        self._sent += 1
        reached, phase = self._told
        return f"{reached}|{self._sent:08d}|{phase}"

    def renew(self) -> None:
        """Renew the message from now on, in a thread, as long as this rank passes safe points."""
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        reported, since = -1, time.monotonic()
        while self._open is not None:
            time.sleep(self.interval)
            if (now := interrupt.progress()) != reported:
                reported, since = now, time.monotonic()
            elif not self._quiet or time.monotonic() - since > self.timeout / 2:  # a long step would show as silence
                continue
            try:
                self.again()
            except RuntimeError:
                return

    def again(self) -> None:
        """Renew the message; if discreet not in the ledger, where the number of messages would be one of seconds."""
        self.put(f"at/{self.rank}", self._message(), None if self.discreet else Purpose.PROGRESS)

    @property
    def interval(self) -> float:
        """Seconds between two messages of a rank that works."""
        return min(2.0, self.timeout / 6)

    def read(self, other: int) -> tuple[int, str, str]:
        """A rank's message: the collective it has reached, its phase, a number that grows while it works.

        (-1, "", "") before the first one.
        """
        key = f"at/{other}"
        if not self.store.check([key]):
            return -1, "", ""
        reached, count, phase = self.store.get(key).decode().split("|", 2)
        return int(reached), phase, count

    def diagnosis(self) -> str:
        """A sentence that names the ranks missing from the collective that this rank waits in."""
        try:
            if self._quiet:
                self.enter(self._phase)
            before = self._behind()
            time.sleep(1.5 * self.interval if self.discreet else 0.2)  # let the others' last messages arrive
            behind = self._behind()
        except RuntimeError:
            return "the store is gone, and with it the launcher or the rank that held it (rank 0)"
        missing = _named(_still(before, behind) if self.discreet else behind)
        return missing or "all ranks joined; one disconnected during the collective"

    def _behind(self) -> Messages:
        """The messages of the members that are not known to have come; equal as long as they make no progress."""
        messages = {other: self.read(other) for other in self.members if other != self.rank}
        return {other: message for other, message in messages.items() if message[0] < self.reached}

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(self, completed: Callable[[], bool], purpose: str) -> None:
        """Poll until ``completed``, at safe points, as long as the missing ranks make progress.

        Raises:
            LostRank: a missing rank makes no progress for the timeout, or another rank asks to regroup.
        """
        began, pause = time.monotonic(), 2e-5
        before: Messages = {}
        look, ask = began + self.timeout / 2, began + 0.2
        while not completed():
            interrupt.check()
            if time.monotonic() > ask:
                self.check_members(purpose)
                ask = time.monotonic() + 0.2
            if time.monotonic() > look:
                behind = self._behind()
                if still := _still(before, behind):
                    waited = f"waited {time.monotonic() - began:.0f} s; {_named(still)}"
                    raise LostRank(f"{purpose}: {waited} (run.timeout is how long a rank may go without progress)")
                look, before = time.monotonic() + self.timeout / 2, behind
            time.sleep(pause)
            pause = min(1.3 * pause, 2e-3)

    def check_members(self, purpose: str) -> None:
        """Raise LostRank if a rank, or the launcher, asks who is left."""
        if self.store.check([f"regroup/{self.epoch}"]):
            raise LostRank(f"{purpose}: another rank asks to continue without those that are missing")

    def await_all(self) -> None:
        """Wait for every rank's first message, since forming the process group itself cannot be interrupted."""
        self._await(f"at/{rank}" for rank in self.members)

    def await_formed(self) -> None:
        """Wait until the process group is formed on every rank: if one left before, the others could not name it."""
        self.put(f"formed/{self.rank}", "", Purpose.PROGRESS)
        self._await(f"formed/{rank}" for rank in self.members)

    def leave(self) -> None:
        """Report that this rank needs the store no more; rank 0, which may hold it, waits a while for the others'."""
        deadline, keys = time.monotonic() + min(self.timeout, LEAVING), [f"left/{rank}" for rank in self.members]
        with suppress(RuntimeError):  # the run is done, with or without the store
            self.put(f"left/{self.rank}", "", Purpose.PROGRESS)
            while self.rank == 0 and not self.store.check(keys) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _await(self, written: Iterable[str]) -> None:
        """Wait until all keys are ``written``. Raises CommError."""
        keys, deadline = list(written), time.monotonic() + self.patience
        try:
            while not self.store.check(keys):
                interrupt.check()
                self.check_members("start")
                if time.monotonic() > deadline:
                    raise CommError(
                        f"start: waited {self.patience:g} s; {self.diagnosis()} (run.timeout sets how long to wait)"
                    )
                time.sleep(0.01)
        except CommError:
            raise
        except RuntimeError as error:  # the rank that held the store waited less long, or left
            raise CommError(f"start: {self.diagnosis()}") from error

    # -- agreement of the ranks -------------------------------------------------------------------------------

    def gather(self, purpose: Purpose, value: str) -> list[bytes]:
        """Every rank's ``value``."""
        self.put(f"{purpose}/{self.rank}", value, purpose)
        return [self.store.get(f"{purpose}/{rank}") for rank in self.members]

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Raise CommError naming this rank and the entries that differ from rank 0's."""
        if self._open is None:
            return
        if self.rank == 0:
            self.put("signature", json.dumps(dict(signature)), Purpose.SIGNATURE)
        self._await(["signature"])
        theirs = json.loads(self.store.get("signature"))
        differ = [key for key in sorted({*theirs, *signature}) if theirs.get(key) != signature.get(key)]
        if differ:
            entries = "; ".join(f"{k} is {signature.get(k)} here, {theirs.get(k)} on rank 0" for k in differ[:4])
            raise CommError(f"rank {self.rank} does not match rank 0: {entries}")


def _still(before: Messages, now: Messages) -> Messages:
    """Those that have not changed."""
    return {other: message for other, message in now.items() if before.get(other) == message}


def _named(missing: Messages) -> str:
    return "; ".join(
        f"rank {other} is missing, last seen in {phase!r}" if phase else f"rank {other} never came"
        for other, (_, phase, _) in missing.items()
    )
