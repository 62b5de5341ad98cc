"""Top-k with error feedback: each client sends its largest coordinates and remembers the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...comm import Comm, Purpose
from ...types import ClientState, Delivery
from ..reduce import Reduce
from .base import Columns, Compression, Setting
from .packing import SparseCode

HEADER = 16
"""Bytes before a client's entries: its id (int64) and its weight (float64)."""


@dataclass(frozen=True)
class TopK(Compression):
    """Each client's largest coordinates; the rest is added to its next update (error feedback).

    Stich et al. 2018, "Sparsified SGD with memory" (arXiv 1809.07599), Algorithm 1, on the updates of clients. Client k
    has a memory e_k, zero at first. In a round it takes part in, with u_k its update,

        p_k = u_k + e_k     send C(p_k)     e_k <- p_k - C(p_k)

    C keeps the k = `share` C coordinates that are largest in magnitude and, with values=int8, rounds these to 8 bits in
    runs of 256 (Basu et al. 2019, "Qsparse-local-SGD", arXiv 1906.02367: top-k and a quantizer together). Biased, but a
    contraction: |p - C(p)|^2 <= (1 - k / C) |p|^2 plus the rounding's, and what is left out is sent later, so that SGD
    keeps its rate (Karimireddy et al. 2019, arXiv 1901.09847).

    Not linear: every client's packet reaches every rank, by one all_gather after the small all_reduce of the rest. A
    packet has about 2.1 bytes per entry (5.1 with float32 values): indices take 1.07 (`SparseCode`), values 1, scales 1
    in 64. (R-1) (m/R) packets from each rank: m k / C times 2.1 / 8 of float32's ring, 2.6% for 10 clients at 1%. It
    grows with m, which the ring does not: for hundreds of clients per round send a smaller fraction. Packets are added
    in the order of clients' ids, so that their sum has the same bits for any number of ranks.
    """

    share: Annotated[float, Field(gt=0, le=1, description="fraction of each client's coordinates that is sent")] = 0.01
    values: Annotated[Literal["int8", "float32"], Field(description="format in which their values are sent")] = "int8"

    @property
    def delivery(self) -> Delivery:
        return "late"

    def init_client(self, columns: Columns) -> ClientState:
        return {"error": torch.zeros(1, columns.compressed)}

    def sum(self, setting: Setting) -> Reduce:
        return TopKSum(self, setting)


class TopKSum:
    """Turns rows into packets as they come, and gathers these in the end."""

    def __init__(self, method: TopK, setting: Setting) -> None:
        self._columns = method.columns(setting.layout, setting.spec)
        self._memory, self._ranks, size = setting.memory, setting.ranks, self._columns.compressed
        self._new = method.init_client(self._columns)
        self._code = SparseCode(size, max(1, round(method.share * size)), 8 if method.values == "int8" else 32)
        self._small = setting.new_sum(setting.spec.dtype)

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._small.open(self._columns.plain, tail + self._ranks, total_weight)
        self.tail, self._counts = self._small.tail.split([tail, self._ranks])
        self._packets: list[Tensor] = []

    @property
    def bound(self) -> float:
        return self._small.bound

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        compressed, plain = self._columns.split(rows)
        corrected = compressed + self._memory.get(ids, self._new)["error"].to(compressed)  # p_k [K, C], a copy
        packets = []
        for client, n, p in zip(ids, weight.tolist(), corrected, strict=True):
            index = _largest(p.abs(), self._code.k)
            packet = self._code.pack(index, p[index])
            p[index] -= self._code.unpack(packet)[1].to(p)  # what is not sent, whatever the packet could not hold
            packets.append(torch.cat([_header(client, n).to(packet.device), packet]))
        self._small.add(plain, weight, ids)
        self._packets += packets
        self._memory.put(ids, {"error": corrected.cpu()}, range(len(ids)))

    def total(self, comm: Comm, round: int) -> Tensor:
        self._counts[comm.rank] = len(self._packets)
        plain = self._small.total(comm, round)
        most = int(self._counts.max())
        mine = torch.zeros(most, HEADER + self._code.size, dtype=torch.uint8, device=plain.device)
        for slot, packet in zip(mine, self._packets, strict=False):
            slot.copy_(packet)
        self._packets.clear()
        gathered = comm.all_gather(mine, Purpose.AGGREGATE).flatten(0, 1) if most else mine  # [R most, bytes]
        total = torch.zeros(self._columns.compressed, dtype=plain.dtype, device=plain.device)
        for _, n, content in sorted(((*_read(packet), packet[HEADER:]) for packet in gathered), key=lambda p: p[0]):
            if n:  # else a slot that a rank with fewer clients left empty
                index, values = self._code.unpack(content)
                total[index] += n * values.to(total)
        return self._columns.join(total, plain)


def _largest(x: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` largest of ``x``, ascending."""
    if x.device.type == "cpu":  # numpy partitions in a third of the time of torch's topk
        return torch.from_numpy(np.argpartition(x.numpy(), len(x) - k)[len(x) - k :]).sort().values
    return x.topk(k, sorted=False).indices.sort().values


def _header(client: int, n: float) -> Tensor:
    words = torch.tensor([client]).view(torch.uint8), torch.tensor([n], dtype=torch.float64).view(torch.uint8)
    return torch.cat(words)


def _read(packet: Tensor) -> tuple[int, float]:
    """The client and its weight, from a packet's header."""
    words = packet[:HEADER].clone()
    return int(words[:8].view(torch.int64)), float(words[8:].clone().view(torch.float64))
