"""The server's addition to layers with adapters, for K clients: none of them changes it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import FoldedLayer


class FoldedResidual(FoldedLayer):
    """y_k = x_k R_k^T; one product where all clients begin with the same R."""

    def __init__(self, name: str, plain: nn.Module) -> None:
        super().__init__(name, plain)
        self.names = ("weight",)
        self._same: Tensor | None = None

    def collect(self, grads: dict[str, Tensor]) -> None:
        """See `FoldedLayer.collect`: there is no gradient."""
        self._same = None

    def begins(self, own: str, start: Tensor, seen: int) -> None:
        """See `FoldedLayer.begins`."""
        self._same = start[0] if len(start) == 1 else None
        if self._same is None:
            super().begins(own, start, seen)

    def ends(self, own: str, start: Tensor) -> None:
        """See `FoldedLayer.ends`."""
        self.own[own].zero_()
        self._same = None

    def forward(self, x: Tensor) -> Tensor:
        self.use()
        if self._same is not None:
            return F.linear(x, self._same)
        rows = x.reshape(self.num_clients, -1, x.shape[-1])
        return torch.bmm(rows, self.weight.mT).view(*x.shape[:-1], -1)
