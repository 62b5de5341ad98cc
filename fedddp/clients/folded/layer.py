"""What the folded layers share: K weights as views into ``w [K, D]``, and what happens to a gradient when it is there.

A layer learns inside the backward pass, in one of two ways. *Descending*, it changes its weights in place and the
gradient is never stored: small clients are bound by memory, and a gradient would be written only to be read once.
*Collecting*, it writes the gradient to its place in ``g [K, P]`` for an optimizer or a correction that needs all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FoldedLayer(nn.Module):
    """A layer of K clients at once. Inputs and outputs keep the shape of the plain layer's, with K B examples.

    Rows of client k are the k-th of K equal parts of the batch. ``weight [K, *shape]`` and ``bias [K, out]`` are views
    into the clients' vectors. Raises RuntimeError when it is used twice in one step: the second use would see weights
    that the first one has already changed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.token = torch.zeros((), requires_grad=True)  # ties a layer without differentiable input to the graph
        self.weight_views: tuple[Tensor, Tensor | None]
        self.grad_views: tuple[Tensor, Tensor | None] | None
        self.lr = 0.0
        self._armed = False

    def attach(self, views: dict[str, Tensor], grads: dict[str, Tensor] | None, lr: float) -> None:
        """Work on these weights [K, ...]: collect into ``grads`` if there are any, else descend by ``lr``."""
        self.weight_views = views[f"{self.name}weight"], views.get(f"{self.name}bias")
        self.grad_views = (grads[f"{self.name}weight"], grads.get(f"{self.name}bias")) if grads else None
        self.lr = lr

    @property
    def num_clients(self) -> int:
        return len(self.weight_views[0])

    def arm(self) -> None:
        """A new step begins."""
        self._armed = True

    def _used(self) -> None:
        if torch.is_grad_enabled():
            if not self._armed:
                raise RuntimeError(f"layer {self.name.rstrip('.')!r} is used more than once in a step")
            self._armed = False

    def learn_bias(self, summed: Tensor) -> None:
        """The bias's gradient, [K, out]."""
        bias = self.weight_views[1]
        if bias is None:
            return
        if self.grad_views:
            assert self.grad_views[1] is not None
            self.grad_views[1].copy_(summed)
        else:
            bias.sub_(summed, alpha=self.lr)
