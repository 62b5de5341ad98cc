"""Apply rules that need single updates, without a rank that ever holds them all.

Each rank has the rows of the clients it trained. One all_to_all turns them into columns: rank r gets its d / R
coordinates of every client's update, and the rule works on these. A round is

    all_reduce   the tail, and how many rows each rank has
    all_to_all   rows [m / R, d] to columns [m, d / R]; ranks with fewer rows pad
    all_reduce   what the rule must know of whole rows: [m, m] for those that need distances, [m] for norms, or nothing
    all_gather   the result's columns

so a rank sends about (m / R) d + d numbers, where a sum sends 2 d. At world size 1 the path is the same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..comm import Comm, Purpose
from ..rng import generator
from ..types import RoundAborted
from .rules import Rule

Tamper = Callable[[Tensor, Tensor], Tensor]
"""From ``(x [m, c], ids [m])`` to what replaces x: colluding clients that know each other's updates, simulated."""

LABELS = 3
"""Numbers sent with each piece of a row: two halves of the client's id, and its weight."""
HALF = 1 << 20  # of an id: both halves are exact in float32


class CoordinateShards:
    """A `Reduce` that applies ``rule`` to the clients' rows, whose weight is above 0 and that did not fail.

    Its "sum" is the rule's result times the summed weight, which the pipeline divides by. Raises RoundAborted, on
    every rank alike, if fewer updates arrived than the rule needs; the model is then unchanged.
    """

    def __init__(
        self,
        rule: Rule,
        dtype: torch.dtype,
        device: torch.device | str,
        world_size: int,
        *,
        seed: int = 0,
        tamper: Tamper | None = None,
    ) -> None:
        self._rule, self._dtype, self._device, self._seed = rule, dtype, torch.device(device), seed
        self._tamper = tamper or (lambda x, ids: x)
        self._world_size, self._slots = world_size, torch.empty(0, dtype=torch.float64)
        self.bound = torch.finfo(dtype).max

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._length, self._rows, self._labels = length, list[Tensor](), list[Tensor]()
        self._slots = torch.zeros(tail + self._world_size, dtype=torch.float64, device=self._device)
        self.bound = torch.finfo(self._dtype).max / max(total_weight, 1.0)
        self._last = torch.zeros(length, dtype=self._dtype)

    @property
    def tail(self) -> Tensor:
        return self._slots[: -self._world_size]

    def recall(self, last: Tensor) -> None:
        """Give a rule that `remembers` the last round's result [length], the same on every rank."""
        self._last = last

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        counts = (weight > 0).tolist()  # weight 0 has no vote
        self._rows += [row for row, taken in zip(rows, counts, strict=True) if taken]
        labels = torch.tensor([[k // HALF, k % HALF, n] for k, n in zip(ids, weight.tolist(), strict=True)])
        self._labels += [label for label, taken in zip(labels, counts, strict=True) if taken]

    def total(self, comm: Comm, round: int) -> Tensor:
        self._slots[comm.rank - self._world_size] = len(self._rows)
        comm.all_reduce(self._slots, Purpose.AGGREGATE)
        counts = [int(n) for n in self._slots[-self._world_size :].tolist()]
        if not any(counts):
            return torch.zeros(self._length, dtype=torch.float64, device=self._device)
        if sum(counts) < self._rule.least:
            needed = f"{type(self._rule).__name__} needs {self._rule.least} updates"
            raise RoundAborted(f"{needed} ({self._rule.needs}), {sum(counts)} arrived")
        x, ids, weight = self._columns(comm, [counts[r] for r in comm.members])
        x = self._tamper(x, ids)
        if self._rule.remembers:
            x = torch.cat([x, self._own_columns(comm)])
        known = self._rule.partial(x)
        if known is not None:
            known = comm.all_reduce(known, Purpose.AGGREGATE)
        mine = self._rule.combine(x, weight, known)
        result = comm.all_gather(mine, Purpose.AGGREGATE).flatten()[: self._length]
        result = self._rule.finish(result, generator(self._seed, "aggregation rule", round))
        return result.double() * float(weight.sum())

    def _own_columns(self, comm: Comm) -> Tensor:
        """This rank's columns of the last round's result, [1, c]."""
        padded = torch.zeros(len(comm.members), -(-self._length // len(comm.members)), dtype=self._dtype)
        padded.view(-1)[: self._length] = self._last
        return padded[[comm.members.index(comm.rank)]].to(self._device)

    def _columns(self, comm: Comm, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's columns of everybody's rows, x [m, c], by ascending client; ids [m], weight [m]."""
        ranks, most = len(comm.members), max(counts)
        c = -(-self._length // ranks)
        block = torch.zeros(ranks, most, c + LABELS, dtype=self._dtype, device=self._device)
        for i, (row, label) in enumerate(zip(self._rows, self._labels, strict=True)):
            for to, piece in enumerate(row.split(c)):
                block[to, i, : len(piece)] = piece
            block[:, i, c:] = label.to(block)
        self._rows, self._labels = [], []  # their memory is needed for what comes
        received = comm.all_to_all(block, Purpose.AGGREGATE).flatten(0, 1)  # [R * most, c + labels]
        del block
        there = torch.tensor([i * most + j for i, n in enumerate(counts) for j in range(n)], device=self._device)
        high, low, weight = received[there, c:].double().unbind(dim=1)
        ids = (high * HALF + low).long()
        order = ids.argsort()  # ranks hold clients in any layout: ties and last bits must not depend on it
        return received[there[order], :c], ids[order], weight[order]
