"""Everything that passes between ranks: the collectives of torch.distributed.

A collective never blocks in C++: it is started asynchronously and polled, so that a signal is noticed while waiting
and a rank that does not come is named (`heartbeat`). What is sent is on the ledger, and a guard can refuse it before.
`Comm.alone()` is the same interface for one process without a process group.

Comm holds a process group of its own, so that the survivors of a lost rank can form another one; with gloo there is no
default group that torch.distributed's own functions could send through.
"""

from __future__ import annotations

import ctypes
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from ..errors import first_line
from . import interrupt
from .gloo import cut, open_sockets
from .guard import AROUND, OBJECTS, Guard, Refused, refuse_around, restore
from .heartbeat import CommError, LostRank, Notes
from .ledger import Ledger
from .world import Place, check_meeting

__all__ = ["Comm", "CommError", "LostRank", "Place", "Refused", "record"]

MODULES = (dist, dist.distributed_c10d)
FOREVER = timedelta(days=1)  # gloo's own timeout; `_poll` keeps the time, since it can name the missing rank


class Comm:
    """The ranks of one run. Every rank must reach every method that communicates, in the same order."""

    def __init__(self, place: Place, device: torch.device, *, store: dist.Store | None, timeout: float) -> None:
        self.place = place
        self.rank, self.world_size = place.rank, place.world_size
        self.members = tuple(range(place.world_size))
        """The ranks still in the group, ascending; `rank` and `world_size` stay what they were."""
        self.device = device
        self.ledger = Ledger()
        self.watch: Callable[[str, Tensor], None] | None = None
        """Called with the purpose and the tensor as it is handed to the transport, before each collective."""
        self.bytes_sent = 0
        self.remark: str | None = None
        self.backend = "none"
        self.synced_at = time.perf_counter()  # when the last collective completed, on all ranks at about the same time
        self._store, self._timeout = store, timeout
        self._notes = Notes(store, place.rank, place.world_size, timeout, self._tell) if store else None
        self._guard: Guard | None = None
        self._group: Any = None
        self._connections: set[tuple[int, str]] = set()
        self._lost = ""  # why the group is of no more use
        self._buffer: Tensor | None = None

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Comm:
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
    ) -> Comm:
        """Join the other ranks (or none, at world size 1).

        The store's keys get a prefix of their own for each restart: addresses of a dead attempt would be dialled
        otherwise. (Agents of several machines count restarts apart; there the launcher must make a new store for each,
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.) Raises CommError naming the ranks that did not come in time, and
        UsageError where the environment does not say where to meet.
        """
        if place.world_size == 1:
            return cls.alone(device)
        attempt = place.attempt if place.local_world_size == place.world_size else "any"
        if store is None:
            check_meeting(place, os.environ)
        prefixed = dist.PrefixStore(f"fedddp/{place.launch}/{attempt}", store or _launchers_store(place, timeout))
        prefixed.set_timeout(timedelta(seconds=timeout))
        comm = cls(place, device, store=prefixed, timeout=timeout)
        assert comm._notes is not None
        comm._notes.enter("start")
        comm._notes.await_all()
        comm.backend = comm._choose_backend(backend)
        try:
            comm._group = comm._nccl() if comm.backend == "nccl" else comm._gloo(timeout)
        except RuntimeError as error:
            told = comm._notes.diagnosis()
            raise CommError(f"the process group did not form within {timeout:g} s: {told}") from error
        comm._notes.await_formed()
        refuse_around(MODULES, OBJECTS)
        comm._notes.tell_of_progress()
        return comm

    def _gloo(self, timeout: float) -> Any:
        """A group of the members, with a prefix of its own in the store: it would dial older addresses otherwise."""
        assert self._store is not None
        assert self._notes is not None
        store = dist.PrefixStore(f"group/{self._notes.epoch}", self._store)
        place = self.members.index(self.rank)
        before = open_sockets()
        group = dist.ProcessGroupGloo(store, place, len(self.members), timedelta(seconds=timeout))
        self._connections = open_sockets() - before
        group._set_default_timeout(FOREVER)
        return group

    def _nccl(self) -> Any:
        assert self._store is not None
        dist.init_process_group(
            "nccl",
            store=self._store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=FOREVER,
            device_id=self.device,
        )
        return dist.distributed_c10d._get_default_group()

    # -- what may be sent, and what was -----------------------------------------------------------------------

    @property
    def guard(self) -> Guard | None:
        """What may be sent. While there is one, torch.distributed's own functions refuse too, for all callers that
        look them up in its modules: a check against mistakes, not against a rank that means harm."""
        return self._guard

    @guard.setter
    def guard(self, guard: Guard | None) -> None:
        self._guard = guard
        if guard is None:
            restore(AROUND)
        else:
            refuse_around(MODULES, OBJECTS + AROUND)

    def _tell(self, key: str, value: str, purpose: str) -> None:
        """A write to the store: guarded, and on the ledger."""
        size = len(key.encode()) + len(value.encode())
        if self._guard:
            self._guard.check("store", "bytes", (), size, purpose)
        self.ledger.add("store", "bytes", (), size, purpose)

    # -- collectives ------------------------------------------------------------------------------------------

    def all_reduce(self, x: Tensor, purpose: str) -> Tensor:
        """Sum ``x`` over the members, in place. A ring sends 2 (R-1)/R of the tensor from each rank."""
        share = 2 * (len(self.members) - 1) / len(self.members)
        return self._run("all_reduce", x, purpose, lambda t: self._group.allreduce([t]), share)

    def broadcast(self, x: Tensor, purpose: str) -> Tensor:
        """Copy rank 0's ``x`` to every member, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        place, size = self.members.index(self.rank), len(self.members)
        children = sum(1 for i in range(32) if 2**i > place and place + 2**i < size)
        return self._run("broadcast", x, purpose, lambda t: self._group.broadcast([t], options), children)

    def all_to_all(self, x: Tensor, purpose: str) -> Tensor:
        """Row j of ``x [members, ...]`` goes to member j; row i of what comes back is what member i sent here."""
        share = (len(self.members) - 1) / len(self.members)
        return self._exchange("all_to_all", x, purpose, x.shape, "alltoall_base", ([], []), share)

    def all_gather(self, x: Tensor, purpose: str) -> Tensor:
        """Every member's ``x``, [members, *x.shape], all of one shape. A ring sends R-1 tensors from each rank."""
        shape, share = (len(self.members), *x.shape), len(self.members) - 1
        return self._exchange("all_gather", x.unsqueeze(0), purpose, shape, "_allgather_base", (), share)

    def _exchange(
        self, op: str, x: Tensor, purpose: str, shape: tuple[int, ...], name: str, more: tuple, share: float
    ) -> Tensor:
        """A collective whose result is another tensor than what goes in."""
        received = x.new_empty(shape)
        if len(self.members) == 1:
            received.copy_(x)  # a copy, as on several ranks

        def start(t: Tensor) -> dist.Work:
            nonlocal received
            received = t.new_empty(shape)
            return getattr(self._group, name)(received, t, *more)

        self._run(op, x.contiguous(), purpose, start, share)
        return received.to(x.device)

    def gather_bytes(self, mine: bytes, size: int, purpose: str) -> list[bytes]:
        """Every member's message, by rank; empty for ranks that are gone. At most ``size`` bytes each.

        One sum of uint8 slots [members, 4 + size], where a rank writes its length and message and the others zero.
        Nothing keeps a rank from writing into another's slot: what matters must be signed.
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
                raise CommError(f"{purpose}: rank {rank}'s message says {length} bytes in a slot of {size}")
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
        """Whether ``flag`` is true on some rank; every rank waits for the answer."""
        return bool(self.all_reduce(torch.tensor([float(flag)]), purpose).item())

    def _run(self, op: str, x: Tensor, purpose: str, start: Callable[[Tensor], dist.Work], share: float) -> Tensor:
        interrupt.check()
        size, dtype, shape = x.numel() * x.element_size(), str(x.dtype).removeprefix("torch."), tuple(x.shape)
        if self._guard:
            self._guard.check(op, dtype, shape, size, purpose)
        if len(self.members) == 1:
            return x
        if self._lost:
            raise LostRank(f"{purpose}: {self._lost}")
        assert self._notes is not None
        self._notes.reached += 1
        self._notes.enter(purpose)
        through = self._staged(x)
        if self.watch:
            self.watch(purpose, through)
        sent = math.ceil(share * size)
        self.ledger.add(op, dtype, shape, sent, purpose)
        try:
            self._poll(start(through), purpose)
        except RuntimeError as error:
            told = str(error) if isinstance(error, CommError) else self._cause(purpose, error)
            self._lost = "a rank was lost, and the others have not regrouped"
            self._forget()
            raise LostRank(told) from error
        if through is not x:
            x.copy_(through)
        self.bytes_sent += sent
        return x

    def _cause(self, purpose: str, error: RuntimeError) -> str:
        assert self._notes is not None
        diagnosis = self._notes.diagnosis()
        interrupt.check()  # a rank that was asked to stop may leave before this one has heard of it
        return f"{purpose}: {diagnosis} ({first_line(error)})"

    def _poll(self, work: dist.Work, purpose: str) -> None:
        """Wait without blocking. A rank that still makes progress is waited for, one that stands still is not."""
        assert self._notes is not None
        began, pause, before = time.monotonic(), 2e-5, ""
        look, ask = began + self._timeout / 2, began + 0.2
        while not work.is_completed():
            interrupt.check()
            if time.monotonic() > ask:
                if self._notes.someone_asks():
                    raise LostRank(f"{purpose}: another rank asks to go on without those that are missing")
                ask = time.monotonic() + 0.2
            if time.monotonic() > look:
                notes = self._notes.of_the_missing()
                if notes == before:
                    told = f"waited {time.monotonic() - began:.0f} s; {self._notes.diagnosis()}"
                    raise LostRank(f"{purpose}: {told} (run.timeout sets how long a rank may stand still)")
                look, before = time.monotonic() + self._timeout / 2, notes
            time.sleep(pause)
            pause = min(1.3 * pause, 2e-3)
        work.wait()
        self.synced_at = time.perf_counter()

    def _staged(self, x: Tensor) -> Tensor:
        """The tensor the backend can move: NCCL moves GPU memory, gloo CPU memory (pinned, where a GPU is used)."""
        target = self.device if self.backend == "nccl" else torch.device("cpu")
        if x.device.type == target.type:
            return x
        if target.type != "cpu":
            return x.to(target)
        if self._buffer is None or self._buffer.numel() < x.numel() * x.element_size():
            self._buffer = torch.empty(x.numel() * x.element_size(), dtype=torch.uint8, pin_memory=True)
        staged = self._buffer[: x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        return staged.copy_(x)

    # -- what ranks tell each other through the store ---------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Note what this rank does now, so that others can say where it was if it does not come back."""
        interrupt.check()
        if self._notes:
            self._notes.enter(phase)

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Compare what must be equal on every rank with rank 0's; a tensor of another size would abort in C++.

        Raises CommError naming this rank and the entries that differ.
        """
        if self._notes:
            self._notes.check_signature(signature)

    def regroup(self, grace: float = 6.0) -> tuple[int, ...]:
        """After `LostRank`: go on with who is left; the new members, the same on every one of them.

        Every survivor must call it; who waits in a collective of the old group meanwhile gets `LostRank` soon. A member
        that neither calls it nor passes a safe point for ``grace`` seconds (at most run.timeout) is gone for good, even
        if it comes back. A collective that failed here may have completed on another member: ask before relying on it.
        Tensors of failed collectives are lost. Raises CommError if rank 0 is gone or this rank was given up, and with
        NCCL, whose kernels still wait for the lost rank.
        """
        if self.backend == "nccl":
            raise CommError(
                "regroup: NCCL cannot go on without a rank; use run.backend=gloo, or restart from a checkpoint"
            )
        if self._notes is None:
            return self.members
        for _ in range(self.world_size):
            self._forget()
            self.members = self._notes.agree(grace)
            try:
                self._group = self._gloo(min(self._timeout, 10.0)) if len(self.members) > 1 else None
            except RuntimeError:  # one more was lost on the way: ask again
                continue
            self._lost = ""
            return self.members
        raise CommError("regroup: the members did not come together")

    def _forget(self) -> None:
        """Cut the group's connections: what is under way ends here and elsewhere, also for a rank that comes back late.

        The group itself is kept for ever, since its destructor waits for what it could not end.
        """
        self._buffer = None
        if self.backend == "gloo" and self._group is not None:
            cut(self._connections)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
            self._group, self._connections = None, set()

    def _choose_backend(self, backend: str) -> str:
        """nccl where every rank has a GPU of its own (compared by UUID), else gloo."""
        assert self._notes is not None
        if backend == "gloo" or self.device.type != "cuda":
            return "gloo"
        uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        gpus = self._notes.gather("gpu", f"{socket.gethostname()}/{uuid}")
        if len(set(gpus)) == self.world_size and dist.is_nccl_available():
            return "nccl"
        if backend == "nccl":
            raise CommError(f"run.backend=nccl needs one GPU a rank: {self.world_size} ranks see {len(set(gpus))}")
        self.remark = (
            f"{self.world_size} ranks share {len(set(gpus))} GPU(s): gloo through pinned CPU buffers, not nccl"
        )
        return "gloo"

    # -- leaving ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave together, at the end of a run that went well."""
        if self.world_size > 1:
            self.barrier("close")
            if self._notes:
                self._notes.close()
            self._group = self._store = None
            if dist.is_initialized():
                dist.destroy_process_group()


def _launchers_store(place: Place, timeout: float) -> dist.Store:
    """The store that torchrun's agent holds, or the one that rank 0 is to hold. Does not wait for the other ranks."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    held_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return dist.TCPStore(
            address,
            port,
            place.world_size,
            is_master=place.rank == 0 and not held_by_agent,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        holder = "the launcher" if held_by_agent else "rank 0"
        told = f"the store at {address}:{port}, which {holder} holds, cannot be reached within {timeout:g} s"
        raise CommError(f"start: {told}") from error
