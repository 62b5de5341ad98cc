"""Form and cut process groups of torch (gloo, NCCL), by parts of torch without a stable interface.

No other file uses such parts. Tested on torch 2.13. When torch changes, check these:
- `ProcessGroupGloo(store, rank, size, options)`: a group beside the default one, which can be replaced after a loss;
  `_Options._devices` and `create_device(hostname)`, the address that a rank listens at.
- `_set_default_timeout`, `allreduce`, `broadcast` with `BroadcastOptions.rootRank`, `alltoall_base`, `_allgather_base`,
  `Work.is_completed`: methods of a process group, called directly, so that a collective is started and then polled.
- `distributed_c10d._get_default_group`: NCCL's group, which `init_process_group` makes.
- `distributed_c10d` itself, the second module in which functions of torch.distributed are looked up.
- gloo's sockets, found in /proc: gloo has no way to end a group while a peer is gone, so its connections are shut down
  here, and the group object is kept alive for ever, since its destructor would wait for what cannot complete.
"""

import ctypes
import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .heartbeat import CommError, Heartbeat
from .ledger import Purpose
from .store import cut, open_sockets

MODULES = (dist, dist.distributed_c10d)
"""The modules in which callers look up functions of torch.distributed."""
FOREVER = timedelta(days=1)  # the group's own timeout; `Heartbeat.wait` keeps the time and names the missing rank


class ProcessGroup:
    """The group of this run's ranks, of its own: a default group that the caller made stays as it is.

    Args:
        backend: "gloo" or "nccl".
        store: through which the ranks exchange addresses.
        device: of this rank.
        remark: a warning about the choice of the backend, None for none.
        address: of this machine, for the others' connections; by default that of its host name. GLOO_SOCKET_IFNAME,
            the name of an interface, goes before.
    """

    def __init__(
        self, backend: str, store: dist.Store, device: torch.device, remark: str | None = None, address: str = ""
    ) -> None:
        self.backend, self.remark = backend, remark
        self._address = "" if os.environ.get("GLOO_SOCKET_IFNAME") else address
        self._store, self._device = store, device
        self._group: Any = None
        self._sockets: set[tuple[int, str]] = set()
        self._buffer: Tensor | None = None
        self._is_default = False

    @property
    def formed(self) -> bool:
        """Whether collectives can be started."""
        return self._group is not None

    def form(self, epoch: int, rank: int, size: int, timeout: float) -> None:
        """Connect ``size`` members, of which this is number ``rank``; ``epoch`` counts the groups of a run.

        Raises RuntimeError if that takes more than ``timeout`` seconds.
        """
        if self.backend == "nccl":
            return self._form_nccl(rank, size)
        store = dist.PrefixStore(f"group/{epoch}", self._store)  # else an older group's addresses would be dialled
        gloo: Any = dist.ProcessGroupGloo
        options, at = gloo._Options(), self._address
        options._devices = [gloo.create_device(hostname=at) if at else gloo.create_default_device()]
        options._timeout = timedelta(seconds=timeout)
        before = open_sockets()
        self._group = gloo(store, rank, size, options)
        self._sockets = open_sockets() - before
        self._group._set_default_timeout(FOREVER)

    def _form_nccl(self, rank: int, size: int) -> None:
        if dist.is_initialized():  # by the caller
            self._group = dist.new_group(backend="nccl", timeout=FOREVER, device_id=self._device)
            return
        dist.init_process_group(
            "nccl", store=self._store, rank=rank, world_size=size, timeout=FOREVER, device_id=self._device
        )
        self._group, self._is_default = dist.distributed_c10d._get_default_group(), True

    # -- collectives: each starts one and returns its handle --------------------------------------------------

    def all_reduce(self, x: Tensor) -> dist.Work:
        """Sum ``x`` over the members, in place."""
        return self._group.allreduce([x])

    def broadcast(self, x: Tensor) -> dist.Work:
        """Copy the first member's ``x`` to the others, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([x], options)

    def all_to_all(self, received: Tensor, x: Tensor) -> dist.Work:
        """Send row j of ``x`` to member j; row i of ``received`` is from member i."""
        return self._group.alltoall_base(received, x, [], [])

    def all_gather(self, received: Tensor, x: Tensor) -> dist.Work:
        """Every member's ``x [1, ...]``, in ``received [members, ...]``."""
        return self._group._allgather_base(received, x)

    def staged(self, x: Tensor) -> Tensor:
        """``x`` in the backend's memory: a GPU's for NCCL, the CPU's (pinned with a GPU) for gloo."""
        target = self._device if self.backend == "nccl" else torch.device("cpu")
        if x.device.type == target.type:
            return x
        if target.type != "cpu":
            return x.to(target)
        size = x.numel() * x.element_size()
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._buffer[:size].view(x.dtype).view(x.shape).copy_(x)

    # -- the end ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Cut gloo's connections: running collectives end here and elsewhere, also for a rank that comes back late."""
        self._buffer = None
        if self.backend == "gloo" and self._group is not None:
            cut(self._sockets)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
            self._group, self._sockets = None, set()

    def close(self) -> None:
        """Destroy the group, once all members have left their last collective."""
        group, self._group = self._group, None
        if self.backend == "nccl" and group is not None:
            dist.destroy_process_group(None if self._is_default else group)


def choose_backend(backend: str, device: torch.device, heartbeat: Heartbeat) -> tuple[str, str | None]:
    """nccl where every rank has a GPU of its own (compared by UUID), else gloo; a remark where GPUs are shared."""
    if backend == "gloo" or device.type != "cuda":
        return "gloo", None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    gpus = heartbeat.gather(Purpose.GPU, f"{socket.gethostname()}/{uuid}")
    ranks, distinct = len(gpus), len(set(gpus))
    if distinct == ranks and dist.is_nccl_available():
        return "nccl", None
    if backend == "nccl":
        raise CommError(f"run.backend=nccl needs one GPU per rank: {ranks} ranks see {distinct}")
    return "gloo", f"{ranks} ranks use {distinct} GPU(s): gloo through pinned CPU buffers, not nccl"
