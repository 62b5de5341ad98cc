"""Communicate between ranks: all collectives of a run go through `Comm`.

A collective never blocks in C++: it is started asynchronously and polled, so that a signal is noticed while waiting
and a missing rank is named (`heartbeat`). Each message is entered in the ledger, and a guard can refuse it before.
`Comm.alone()` is the same interface for one process without a process group.

Comm has a process group of its own (`gloo`), so that the survivors of a lost rank can form another one; with gloo
there is no default group that torch.distributed's own functions could send through.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from ..errors import first_line
from . import interrupt
from .faults import Faults
from .gloo import ProcessGroup, choose_backend
from .guard import AROUND, OBJECTS, Guard, MessageRefused, refuse_around
from .heartbeat import CommError, Heartbeat, LostRank
from .ledger import Ledger, Purpose
from .membership import Membership, Signer
from .store import TimedStore, announced, launchers_store
from .world import Place, check_meeting, listening_address

__all__ = ["Comm", "CommError", "LostRank", "MessageRefused", "Place", "Purpose", "record"]


class Comm:
    """The ranks of one run. Every rank must reach every method that communicates, in the same order.

    ``purpose``, a `Purpose`, is what a message is for. A guard refuses others.

    Attributes:
        rank, world_size: from the launcher, also after a loss.
        members: the ranks still in the group, ascending.
        device: of this rank.
        ledger: the messages sent.
        bytes_sent: by collectives, from this rank, in all.
        synced_at: when the last collective completed (`time.perf_counter`), on all ranks at about the same time.
        faults: injected for tests; none without FEDDDP_FAULT.
        coordinated: whether the launcher decides after a loss which ranks go on.
        watch: called with the purpose and the tensor that the transport gets, before each collective.
    """

    def __init__(self, place: Place, device: torch.device, *, store: TimedStore | None, timeout: float) -> None:
        self.rank, self.world_size = place.rank, place.world_size
        self.members = tuple(range(place.world_size))
        self.device = device
        self.ledger = Ledger()
        self.watch: Callable[[str, Tensor], None] | None = None
        self.bytes_sent = 0
        self.synced_at = time.perf_counter()
        self.faults = Faults(os.environ, place.rank, place.attempt)
        self._store = store
        self._heartbeat = Heartbeat(store, place.rank, place.world_size, timeout, self._account)
        self._membership = Membership(self._heartbeat)
        self.coordinated = place.coordinated
        self._guard: Guard | None = None
        self._group: ProcessGroup | None = None

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Self:
        """World size 1: every collective is the identity and sends nothing."""
        return cls(Place(), torch.device(device), store=None, timeout=0.0)

    @classmethod
    def connect(
        cls,
        place: Place,
        device: torch.device,
        *,
        backend: str = "auto",
        timeout: float = 120.0,
        store: dist.Store | None = None,
    ) -> Self:
        """Join the other ranks (or none, at world size 1).

        The store's keys get a prefix of their own for each restart: addresses of a dead attempt would be dialled
        otherwise. (Agents of several machines count restarts apart; there the launcher must make a new store for each,
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.)

        Args:
            place: of this process among the ranks.
            device: of this rank's tensors.
            backend: "gloo", "nccl", or "auto": nccl where every rank has a GPU of its own.
            timeout: seconds to wait for the others, now and for any progress later.
            store: where the ranks meet; by default the launcher's, at MASTER_ADDR and MASTER_PORT.

        Raises:
            CommError: names the ranks that did not come in time.
            UsageError: the environment does not say where to meet.
        """
        if place.world_size == 1 and not place.coordinated:
            return cls.alone(device)
        attempt = place.attempt if place.local_world_size == place.world_size else "any"
        if store is None:
            check_meeting(place, os.environ)
        timed = launchers_store(place, timeout) if store is None else TimedStore(store, set(), timeout, "the store")
        timed.below(f"fedddp/{place.job or place.launch}/{attempt}", timeout)
        comm = cls(place, device, store=timed, timeout=timeout)
        heartbeat = comm._heartbeat
        heartbeat.patience = place.patience(timeout)
        heartbeat.enter("start")
        if place.coordinated:  # a rank that waits for others to start shows the launcher that it does
            heartbeat.renew()
        try:
            comm._meet(place, timed, backend, timeout)
        except BaseException:
            comm.leave()
            raise
        if not place.coordinated:
            heartbeat.renew()
        return comm

    def _meet(self, place: Place, store: TimedStore, backend: str, timeout: float) -> None:
        """Wait for the others and form the process group."""
        heartbeat = self._heartbeat
        with announced(
            lambda: f"start: {heartbeat.diagnosis()}; waiting up to {heartbeat.patience:g} s (run.timeout)", place
        ):
            heartbeat.await_all()
        backend, remark = choose_backend(backend, self.device, heartbeat)
        self._group = ProcessGroup(backend, store.raw, self.device, remark, listening_address(place, os.environ))
        try:
            with store.limited():
                self._group.form(0, self.rank, self.world_size, min(timeout / 2, 10) if place.coordinated else timeout)
        except RuntimeError as error:
            raise LostRank(f"the process group did not form within {timeout:g} s: {heartbeat.diagnosis()}") from error
        heartbeat.await_formed()
        refuse_around(self, OBJECTS)

    @property
    def backend(self) -> str:
        """gloo, nccl, or none at world size 1."""
        return self._group.backend if self._group else "none"

    @property
    def remark(self) -> str | None:
        """A warning about the backend."""
        return self._group.remark if self._group else None

    @property
    def epoch(self) -> int:
        """How often the members were decided anew; grows, and is the same on all of them."""
        return self._heartbeat.epoch

    # -- guard and ledger -------------------------------------------------------------------------------------

    @property
    def guard(self) -> Guard | None:
        """The messages that may be sent. With a guard torch.distributed's own functions refuse too, for all callers
        that look them up in its modules, until `close`: a check against mistakes, not against a malicious rank."""
        return self._guard

    @guard.setter
    def guard(self, guard: Guard | None) -> None:
        self._guard = guard
        objects = OBJECTS if guard or self._group else ()
        refuse_around(self, objects + (AROUND if guard else ()))

    def _account(self, key: str, value: str, purpose: Purpose) -> None:
        """Check a write to the store and enter it in the ledger."""
        size = len(key.encode()) + len(value.encode())
        if self._guard:
            self._guard.check("store", "bytes", (), size, purpose)
        self.ledger.add("store", "bytes", (), size, purpose)

    # -- collectives ------------------------------------------------------------------------------------------

    def all_reduce(self, x: Tensor, purpose: str) -> Tensor:
        """Sum ``x`` over the members, in place. A ring sends 2 (R-1)/R of the tensor from each rank."""
        copies = 2 * (len(self.members) - 1) / len(self.members)
        return self._run("all_reduce", x, purpose, ProcessGroup.all_reduce, copies)

    def broadcast(self, x: Tensor, purpose: str) -> Tensor:
        """Copy rank 0's ``x`` to every member, in place."""
        position, size = self.members.index(self.rank), len(self.members)
        children = sum(1 for i in range(32) if 2**i > position and position + 2**i < size)
        return self._run("broadcast", x, purpose, ProcessGroup.broadcast, children)

    def all_to_all(self, x: Tensor, purpose: str) -> Tensor:
        """Send row j of ``x [members, ...]`` to member j; row i of the result is from member i."""
        copies = (len(self.members) - 1) / len(self.members)
        return self._exchange("all_to_all", x, purpose, x.shape, ProcessGroup.all_to_all, copies)

    def all_gather(self, x: Tensor, purpose: str) -> Tensor:
        """Every member's ``x``, [members, *x.shape], all of one shape. A ring sends R-1 tensors from each rank."""
        shape, copies = (len(self.members), *x.shape), len(self.members) - 1
        return self._exchange("all_gather", x.unsqueeze(0), purpose, shape, ProcessGroup.all_gather, copies)

    def _exchange(
        self,
        op: str,
        x: Tensor,
        purpose: str,
        shape: tuple[int, ...],
        start: Callable[[ProcessGroup, Tensor, Tensor], dist.Work],
        copies: float,
    ) -> Tensor:
        """Run a collective whose result, of ``shape``, is another tensor than ``x``."""
        received = x.new_empty(shape)
        if len(self.members) == 1:
            received.copy_(x)  # a copy, as on several ranks

        def into_received(group: ProcessGroup, t: Tensor) -> dist.Work:
            nonlocal received
            received = t.new_empty(shape)
            return start(group, received, t)

        self._run(op, x.contiguous(), purpose, into_received, copies)
        return received.to(x.device)

    def gather_bytes(self, mine: bytes, size: int, purpose: str) -> list[bytes]:
        """Every member's message, by rank; empty for lost ranks. At most ``size`` bytes each.

        One sum of uint8 slots [members, 4 + size], where a rank writes its length and message and the others zero.
        A rank can write into another's slot: messages that must be authentic have to be signed.
        """
        if len(mine) > size:
            raise ValueError(f"{purpose}: a message of {len(mine)} bytes in a slot of {size}")
        slots = torch.zeros(len(self.members), 4 + size, dtype=torch.uint8)
        row = len(mine).to_bytes(4, "little") + mine
        slots[self.members.index(self.rank), : len(row)] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        messages = [b""] * self.world_size
        for rank, row in zip(self.members, self.all_reduce(slots, purpose).numpy(), strict=True):
            length = int.from_bytes(row[:4].tobytes(), "little")
            if length > size:
                raise CommError(f"{purpose}: rank {rank}'s message has length {length} in a slot of {size}")
            messages[rank] = row[4 : 4 + length].tobytes()
        return messages

    def barrier(self, purpose: str) -> None:
        """Wait until every rank is here, without using a core."""
        self.all_reduce(torch.zeros(1), purpose)

    def broadcast_text(self, text: str, purpose: str) -> str:
        """Rank 0's ``text`` on every rank, as bytes."""
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = self.broadcast(torch.tensor([len(content)]), purpose)
        buffer = content if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        return bytes(self.broadcast(buffer, purpose).tolist()).decode()

    def any(self, flag: bool, purpose: str) -> bool:
        """Whether ``flag`` is true on any rank; every rank waits for the answer."""
        return bool(self.all_reduce(torch.tensor([float(flag)]), purpose).item())

    def _run(
        self, op: str, x: Tensor, purpose: str, start: Callable[[ProcessGroup, Tensor], dist.Work], copies: float
    ) -> Tensor:
        """Run one collective to its end; ``copies`` of the tensor are sent from this rank."""
        interrupt.check()
        size, dtype, shape = x.numel() * x.element_size(), str(x.dtype).removeprefix("torch."), tuple(x.shape)
        if self._guard:
            self._guard.check(op, dtype, shape, size, purpose)
        self.faults.reach(f"before {purpose}", x)
        if len(self.members) == 1:
            return x
        group = self._group
        if group is None or not group.formed:
            raise LostRank(f"{purpose}: a rank was lost, and the others have not regrouped")
        self._heartbeat.join(purpose)
        staged = group.staged(x)
        if self.watch:
            self.watch(purpose, staged)
        sent = math.ceil(copies * size)
        self.ledger.add(op, dtype, shape, sent, purpose)
        try:
            work = start(group, staged)
            self._heartbeat.wait(work.is_completed, purpose)
            work.wait()
        except RuntimeError as error:
            cause = str(error) if isinstance(error, CommError) else self._cause(purpose, error)
            group.abandon()
            raise LostRank(cause) from error
        self._heartbeat.joined()
        self.synced_at = time.perf_counter()
        if staged is not x:
            x.copy_(staged)
        self.bytes_sent += sent
        self.faults.reach(f"after {purpose}", x)
        return x

    def _cause(self, purpose: str, error: RuntimeError) -> str:
        diagnosis = self._heartbeat.diagnosis()
        interrupt.check()  # a rank that was asked to stop may leave before this one is
        return f"{purpose}: {diagnosis} ({first_line(error)})"

    # -- messages through the store -------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Report what this rank does now, so that others can name it if this rank is lost."""
        interrupt.check()
        if self.coordinated:
            self._heartbeat.check_members(phase)
        self.faults.reach(phase)
        self._heartbeat.work(phase)

    def keep_discreet(self, discreet: bool) -> None:
        """From now on send no message, or again all, that depends on how long this rank works, see `heartbeat`."""
        self._heartbeat.discreet = discreet

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Compare entries that must be equal on every rank with rank 0's; a tensor of another size would abort in C++.

        Raises CommError naming this rank and the entries that differ.
        """
        self._heartbeat.check_signature(signature)

    def regroup(self, grace: float = 6.0) -> tuple[int, ...]:
        """After `LostRank`, continue with the ranks that are left: the new members, the same on each of them.

        Every survivor must call it; one that waits in a collective of the old group soon gets `LostRank`. A member
        that neither calls it nor passes a safe point for ``grace`` seconds (at most run.timeout) is lost for good, even
        if it comes back. A collective that failed here may have completed on another member: ask before relying on it.
        Tensors of failed collectives are lost.

        Raises:
            CommError: rank 0 is lost, this rank was given up, or the backend is NCCL, whose kernels still wait for the
                lost rank.
        """
        if self.backend == "nccl":
            raise CommError(
                "regroup: NCCL cannot continue without a rank; use run.backend=gloo, or restart from a checkpoint"
            )
        group, heartbeat = self._group, self._heartbeat
        if group is None:
            return self.members
        for _ in range(self.world_size):
            group.abandon()
            self.members = members = self._membership.agree(grace)
            try:
                if len(members) > 1:
                    position = members.index(self.rank)
                    group.form(heartbeat.epoch, position, len(members), min(heartbeat.timeout, 10.0))
            except RuntimeError:  # one more was lost on the way: ask again
                continue
            return members
        raise CommError("regroup: the members did not come together")

    def sign_members(self, signer: Signer) -> None:
        """From now on believe of who is left only what is signed; every rank must call it, with a key of its own."""
        self._membership.signer = signer

    # -- leaving ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave together, after a run without errors. The process is then as it was before `connect`."""
        if self.world_size > 1:
            self.barrier(Purpose.CLOSE)
        if self.world_size > 1 or self.coordinated:  # the end of the process may take as long as a rank may stand still
            self._heartbeat.leave()
        if self.world_size > 1 and self._group:
            self._group.close()
        self.release()

    def leave(self) -> None:
        """Leave the others after a loss, to meet those that are left in a new connection."""
        if self._group:
            self._group.abandon()
        self.release()

    def release(self) -> None:
        """Undo all changes to the process, without the other ranks: the end of a run that failed."""
        self._heartbeat.close()
        if self._store:
            self._store.close()
        self._guard = None
        refuse_around(self, ())
