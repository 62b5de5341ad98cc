"""Hold the examples of the clients that one rank can train, and look up their batches.

Letters: N population, K clients looked up together, T steps, B examples of a batch, n examples of one client.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .datasets import Examples
from .inputs import Normalizer
from .partition import Ints, Partition
from .skew import NoSkew, Skew
from .targets import IGNORED

Placement = Literal["home", "shared"]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; a GPU is not waited for, it finds the copy behind the work that it already has."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


class ClientData:
    """The clients that this rank can train, and their examples, on ``device``.

    ``home``: client k belongs to rank k mod R, and a rank holds the examples of its own clients only. ``shared``, for
    simulation: every rank can train every client and holds all examples, with the partition. A client then costs two
    numbers, its start and its size.
    """

    def __init__(
        self,
        examples: Examples,
        partition: Partition,
        normalize: Normalizer,
        *,
        rank: int = 0,
        world_size: int = 1,
        placement: Placement = "home",
        device: torch.device | str = "cpu",
        skew: Skew | None = None,
        seed: int = 0,
    ) -> None:
        self.sizes = torch.from_numpy(partition.sizes).long()  # [N], of everybody: public, the weights of the mean
        self.normalize, self.placement = normalize, placement
        self._rank, self._world_size, self._device = rank, world_size, torch.device(device)
        self._skew = (skew or NoSkew()).of(
            normalize.pictures(examples.x.new_zeros(examples.x.shape[1:]).to(device)), self.num_clients, seed
        )
        if placement == "shared":
            self._x, self._y = examples.x.to(device), examples.y.to(device)  # no copy where they are there already
            self._order: Tensor | None = torch.from_numpy(partition.order).to(device)
            self._starts = partition.starts  # [N], on the host: of a round's clients only
            return
        rows, self._starts = _own(partition, np.arange(rank, partition.num_clients, world_size))
        x, y = examples.x[rows], examples.y[rows]
        if not len(rows):  # one blank example that nobody owns: padding points at something
            x, y = examples.x.new_zeros(1, *examples.x.shape[1:]), examples.y.new_zeros(1)
        self._x, self._y, self._order = x.to(device), y.to(device), None  # None: they lie as their owners' ranges do

    @property
    def num_clients(self) -> int:
        return len(self.sizes)

    def holds(self, client: int) -> bool:
        """Whether this rank can train ``client``."""
        return 0 <= client < self.num_clients and (
            self.placement == "shared" or client % self._world_size == self._rank
        )

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """One client's inputs [n, ...] for `normalize` and labels [n]. Raises KeyError for one that does not live here.

        They are raw, or, where ``data.skew`` changes them, normalised already, which `normalize` leaves as it is.
        """
        rows = self._rows(client)
        x, y = self._x[rows], self._y[rows]
        return (self._skew(self.normalize(x), client, range(len(y))) if self._skew else x), y

    def counted(self, ids: Sequence[int]) -> Tensor:
        """The examples of each client, each as the fraction of its positions that have a target, [K] float64.

        Where targets are not of positions, an example counts 1. Raises KeyError for a client that does not live here.
        """
        if self._y.dim() != 2 or self._y.dtype != torch.int64:
            return self.sizes[list(ids)].double()
        there = [(self._y[self._rows(client)] != IGNORED).sum() for client in ids]
        return torch.stack(there).double().cpu() / self._y.shape[1]

    def gather(self, ids: Sequence[int], index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised inputs [T, K, B, ...] and labels [T, K, B] at ``index [T, K, B]`` of each client's own examples.

        Padding is index 0, which is some example even where a client has none. Only ``index`` and K numbers travel to
        the device. Raises KeyError naming the first client that does not live here.
        """
        rows = (sent(self._first(ids), self._device).view(-1, 1) + index.to(self._device)).flatten()
        if self._order is not None:
            rows = self._order.index_select(0, rows)
        x, y = (
            of.index_select(0, rows).unflatten(0, index.shape) for of in (self._x, self._y)
        )  # 20 times as fast as [rows]
        x = self.normalize(x)
        if self._skew:
            for k, client in enumerate(ids):
                own = x[:, k]
                own.copy_(self._skew(own.flatten(0, 1), client, index[:, k].flatten().tolist()).view_as(own))
        return x, y

    def _rows(self, client: int) -> slice | Tensor:
        """Where one client's examples lie."""
        (start,) = self._first([client]).tolist()
        own = slice(start, start + int(self.sizes[client]))
        return own if self._order is None else self._order[own]

    def _first(self, ids: Sequence[int]) -> Tensor:
        """Where the ranges of ``ids`` begin, [K]; that of a client without examples may begin behind the last one."""
        for client in ids:
            if not self.holds(client):
                raise KeyError(f"client {client} does not live on rank {self._rank} of {self._world_size}")
        at = np.asarray(ids, dtype=np.int64) // (1 if self.placement == "shared" else self._world_size)
        last = len(self._y if self._order is None else self._order) - 1
        return torch.from_numpy(np.minimum(self._starts[at], last).astype(np.int64))


def _own(partition: Partition, clients: Ints) -> tuple[Tensor, Ints]:
    """The rows of the dataset that ``clients`` own, as in ``order`` but without gaps, and where each begins there.

    What several own is held once: the ends of the ranges are counted like brackets, depth above 0 is owned.
    """
    starts, length = partition.starts[clients], len(partition.order)
    opened = np.bincount(starts, minlength=length + 1)
    closed = np.bincount(starts + partition.sizes[clients], minlength=length + 1)
    owned = np.cumsum(opened - closed)[:length] > 0
    before = np.concatenate([[0], np.cumsum(owned)])  # owned positions in front of each
    return torch.from_numpy(partition.order[owned]).long(), before[starts]
