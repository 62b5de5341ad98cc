"""The examples of the clients that live on one rank; nobody else's are kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .datasets import Dataset, Examples
from .partition import Partition


class Normalizer:
    """uint8 pixels to floating point on the fly: (x / 255 - mean) / std a channel; other inputs are only cast."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype
        spread = torch.tensor(std, dtype=torch.float64)
        shape = (-1, 1, 1) if len(mean) > 1 else ()
        self._scale = (1 / (255 * spread)).to(device, dtype).reshape(shape)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).to(device, dtype).reshape(shape)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return x.to(self.dtype).mul_(self._scale).add_(self._shift)
        return x.to(self.dtype) if x.is_floating_point() else x


class ClientData:
    """The clients ``rank, rank + R, rank + 2R, ...`` of a partition, their examples side by side on ``device``."""

    def __init__(
        self,
        examples: Examples,
        partition: Partition,
        normalize: Normalizer,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes = torch.from_numpy(partition.sizes.copy())  # [N], of everybody: public, the weights of the mean
        self.normalize = normalize
        self._rank, self._world_size = rank, world_size
        own = np.arange(rank, partition.num_clients, world_size)
        rows = torch.from_numpy(partition.of(own))
        self._x, self._y = examples.x[rows].to(device), examples.y[rows].to(device)
        self._offsets = np.concatenate([[0], np.cumsum(partition.sizes[own])])

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        partition: Partition,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> ClientData:
        """This rank's share of ``dataset``'s training examples."""
        normalize = Normalizer(dataset.mean, dataset.std, dtype, device)
        return cls(dataset.train, partition, normalize, rank=rank, world_size=world_size, device=device)

    @property
    def num_clients(self) -> int:
        return len(self.sizes)

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """Views of one client's raw inputs [n, ...] and labels [n]. Raises KeyError for a client of another rank."""
        position, elsewhere = divmod(client - self._rank, self._world_size)
        if elsewhere or not 0 <= client < self.num_clients:
            raise KeyError(f"client {client} does not live on rank {self._rank} of {self._world_size}")
        start, stop = self._offsets[position], self._offsets[position + 1]
        return self._x[start:stop], self._y[start:stop]
