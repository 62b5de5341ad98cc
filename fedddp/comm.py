"""Everything that passes between ranks. The only file that calls torch.distributed.

A collective never blocks in C++: it is started asynchronously and polled, so that a signal is noticed while waiting
and a rank that does not come is named. For that each rank notes in the store which phase it is in and which collective
it has reached. `Comm.alone()` is the same interface for one process without a process group.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from . import interrupt

__all__ = ["Comm", "CommError", "Place", "leave", "record"]


class CommError(RuntimeError):
    """A collective that cannot complete, or ranks that do not fit together; says which rank and where it was."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks, as torchrun's environment says; alone without one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    attempt: int = 0
    launch: str = ""
    """What one start by torchrun has in common with its restarts and with no other start; empty without torchrun."""

    @property
    def may_be_a_restart(self) -> bool:
        """Whether a launch can have run before this process: agents of several machines count restarts apart."""
        return self.attempt > 0 or self.local_world_size < self.world_size

    @classmethod
    def from_env(cls) -> Place:
        env = os.environ
        rank, world_size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=int(env.get("LOCAL_RANK", rank)),
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", world_size)),
            attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
            launch=_launch(env),
        )


def _launch(env: Mapping[str, str]) -> str:
    run_id = env.get("TORCHELASTIC_RUN_ID", "")
    return f"{run_id}/{socket.gethostname()}/{os.getppid()}" if run_id == "none" else run_id


class Comm:
    """The ranks of one run. Every rank must reach every method that communicates, in the same order."""

    def __init__(self, place: Place, device: torch.device, *, store: dist.Store | None, timeout: float) -> None:
        self.place = place
        self.rank, self.world_size = place.rank, place.world_size
        self.device = device
        self.bytes_sent = 0
        self.remark: str | None = None
        self.backend = "none"
        self._store, self._timeout = store, timeout
        self._reached, self._phase = 0, "start"
        self.synced_at = time.perf_counter()  # when the last collective completed, on all ranks at about the same time
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
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.) Raises CommError naming the ranks that did not come in time.
        """
        if place.world_size == 1:
            return cls.alone(device)
        attempt = place.attempt if place.local_world_size == place.world_size else "any"
        prefixed = dist.PrefixStore(f"fedddp/{place.launch}/{attempt}", store or _launchers_store(place, timeout))
        prefixed.set_timeout(timedelta(seconds=timeout))
        comm = cls(place, device, store=prefixed, timeout=timeout)
        comm._enter("start")
        comm._await_all()
        comm.backend = comm._choose_backend(backend)
        try:
            dist.init_process_group(
                comm.backend,
                store=prefixed,
                rank=place.rank,
                world_size=place.world_size,
                timeout=timedelta(days=1),  # `_poll` keeps the time: it names the missing rank
                device_id=device if comm.backend == "nccl" else None,
            )
        except (RuntimeError, dist.DistError) as error:
            raise CommError(f"the process group did not form within {timeout:g} s: {comm._diagnosis()}") from error
        threading.Thread(target=comm._tell_of_progress, daemon=True).start()
        return comm

    # -- collectives ------------------------------------------------------------------------------------------

    def all_reduce(self, x: Tensor, purpose: str) -> Tensor:
        """Sum ``x`` over the ranks, in place. A ring sends 2 (R-1)/R of the tensor from each rank."""
        share = 2 * (self.world_size - 1) / self.world_size
        return self._run(x, purpose, lambda t: dist.all_reduce(t, async_op=True), share)

    def broadcast(self, x: Tensor, purpose: str) -> Tensor:
        """Copy rank 0's ``x`` to every rank, in place."""
        children = sum(1 for i in range(32) if 2**i > self.rank and self.rank + 2**i < self.world_size)
        return self._run(x, purpose, lambda t: dist.broadcast(t, src=0, async_op=True), children)

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

    def _run(self, x: Tensor, purpose: str, start: Callable[[Tensor], dist.Work | None], share: float) -> Tensor:
        interrupt.check()
        if self.world_size == 1:
            return x
        self._reached += 1
        self._enter(purpose)
        through = self._staged(x)
        try:
            work = start(through)
            assert work is not None
            self._poll(work, purpose)
        except RuntimeError as error:
            if isinstance(error, CommError):
                raise
            diagnosis = self._diagnosis()
            interrupt.check()  # a rank that was asked to stop may leave before this one has heard of it
            raise CommError(f"{purpose}: {diagnosis} ({str(error).splitlines()[0]})") from error
        if through is not x:
            x.copy_(through)
        self.bytes_sent += math.ceil(share * x.numel() * x.element_size())
        return x

    def _poll(self, work: dist.Work, purpose: str) -> None:
        """Wait without blocking. A rank that still makes progress is waited for, one that stands still is not."""
        began, pause, before = time.monotonic(), 2e-5, ""
        look = began + self._timeout / 2
        while not work.is_completed():
            interrupt.check()
            if time.monotonic() > look:
                notes = self._notes_of_the_missing()
                if notes == before:
                    told = f"waited {time.monotonic() - began:.0f} s; {self._diagnosis()}"
                    raise CommError(f"{purpose}: {told} (run.timeout sets how long a rank may stand still)")
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
        self._enter(phase)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        try:
            self._write_note()
        except (RuntimeError, dist.DistError) as error:
            raise CommError(f"{phase}: the launcher's store is gone ({str(error).splitlines()[0]})") from error

    def _write_note(self) -> None:
        store = self._store  # `close` may take it away while the thread that tells of progress writes
        if store is not None:
            store.set(f"at/{self.rank}", f"{self._reached}|{interrupt.passed}|{self._phase}")

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Compare what must be equal on every rank with rank 0's; a tensor of another size would abort in C++.

        Raises CommError naming this rank and the entries that differ.
        """
        if self._store is None:
            return
        if self.rank == 0:
            self._store.set("signature", json.dumps(dict(signature)))
        theirs = json.loads(self._store.get("signature"))
        differ = [key for key in sorted({*theirs, *signature}) if theirs.get(key) != signature.get(key)]
        if differ:
            told = "; ".join(f"{k} is {signature.get(k)} here, {theirs.get(k)} on rank 0" for k in differ[:4])
            raise CommError(f"rank {self.rank} does not match rank 0: {told}")

    def _diagnosis(self) -> str:
        """Who is missing, from the notes in the store."""
        time.sleep(0.2)  # let the others' last notes arrive
        missing = []
        for other in range(self.world_size):
            try:
                reached, phase, _ = self._note(other)
            except (RuntimeError, dist.DistError):
                return "the store is gone, and with it the launcher or the rank that held it (rank 0)"
            if reached < self._reached:
                missing.append(
                    f"rank {other} is missing, last seen in {phase!r}" if phase else f"rank {other} never came"
                )
        return "; ".join(missing) or "every rank came, one left while its message was on the way"

    def _notes_of_the_missing(self) -> str:
        notes = {other: self._note(other) for other in range(self.world_size)}
        return repr({other: note for other, note in notes.items() if note[0] < self._reached})

    def _note(self, other: int) -> tuple[int, str, str]:
        """The collective that a rank has reached, its phase, and a count that grows while it works; (-1, "", "")."""
        assert self._store is not None
        key = f"at/{other}"
        if not self._store.check([key]):
            return -1, "", ""
        reached, count, phase = self._store.get(key).decode().split("|", 2)
        return int(reached), phase, count

    def _tell_of_progress(self) -> None:
        """While this rank works between collectives, renew its note as long as it passes safe points."""
        told = -1
        while self._store is not None:
            time.sleep(min(5.0, self._timeout / 6))
            if interrupt.passed != told:
                told = interrupt.passed
                try:
                    self._write_note()
                except (RuntimeError, dist.DistError):
                    return

    def _await_all(self) -> None:
        """Wait for every rank's first note: forming the process group itself cannot be interrupted."""
        assert self._store is not None
        keys, deadline = [f"at/{rank}" for rank in range(self.world_size)], time.monotonic() + self._timeout
        while not self._store.check(keys):
            interrupt.check()
            if time.monotonic() > deadline:
                raise CommError(
                    f"start: waited {self._timeout:g} s; {self._diagnosis()} (run.timeout sets how long to wait)"
                )
            time.sleep(0.05)

    def _choose_backend(self, backend: str) -> str:
        """nccl where every rank has a GPU of its own (compared by UUID), else gloo."""
        assert self._store is not None
        if backend == "gloo" or self.device.type != "cuda":
            return "gloo"
        uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        self._store.set(f"gpu/{self.rank}", f"{socket.gethostname()}/{uuid}")
        gpus = [self._store.get(f"gpu/{r}") for r in range(self.world_size)]
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
            self._store = None
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
    except (RuntimeError, dist.DistError) as error:
        holder = "the launcher" if held_by_agent else "rank 0"
        told = f"the store at {address}:{port}, which {holder} holds, cannot be reached within {timeout:g} s"
        raise CommError(f"start: {told}") from error


def leave(code: int) -> None:
    """End this process at once: a process group with work under way would wait for it in its destructor."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
