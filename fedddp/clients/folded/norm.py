"""Normalisation of K clients: the statistics of an example are its own, scale and shift those of its client."""

from typing import Any

import torch
from torch import Tensor, nn

from .layer import FoldedLayer


class FoldedNorm(FoldedLayer):
    """y = n(x) w_k + b_k, with n the plain layer's normalisation of each example."""

    def __init__(self, name: str, plain: nn.Module, bare: nn.Module) -> None:
        """``bare``: the same layer without parameters."""
        super().__init__(name, plain)
        self.bare = bare

    @staticmethod
    def stands_for(plain: nn.Module) -> bool:
        """One without parameters stays as it is."""
        return plain.weight is not None

    def forward(self, x: Tensor) -> Tensor:
        self.use()
        return _Scale.apply(self.bare(x), self.token, self)  # pyright: ignore[reportReturnType]

    def of_each(self, own: Tensor, x: Tensor) -> Tensor:
        """A parameter [K, *shape] for each example of ``x [K B, ..., *shape]``, [K B, 1, ..., *shape]."""
        each = own.repeat_interleave(len(x) // len(own), dim=0)
        return each.view(len(x), *[1] * (x.dim() - each.dim()), *own.shape[1:])

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """Take in the gradients from the normalised inputs and the output gradients."""
        for own in self.names:
            self.learn(own, self.summed(own, x, dy, 1).squeeze(1))

    def summed(self, own: str, x: Tensor, dy: Tensor, parts: int) -> Tensor:
        """A parameter's gradient, summed over each of so many equal parts of a client's rows, [K, parts, *shape]."""
        each = self.of_each(self.own[own], x)
        rows = (dy * x if own == "weight" else dy).sum_to_size(each.shape)
        return rows.reshape(self.num_clients, parts, -1, *self.own[own].shape[1:]).sum(dim=2)


class FoldedLayerNorm(FoldedNorm):
    """Over the last axes (Ba et al. 2016)."""

    def __init__(self, name: str, plain: nn.LayerNorm) -> None:
        super().__init__(name, plain, nn.LayerNorm(list(plain.normalized_shape), plain.eps, elementwise_affine=False))


class FoldedRMSNorm(FoldedNorm):
    """Over the last axes, by their root mean square (Zhang & Sennrich 2019)."""

    def __init__(self, name: str, plain: nn.RMSNorm) -> None:
        super().__init__(name, plain, nn.RMSNorm(list(plain.normalized_shape), plain.eps, elementwise_affine=False))


class FoldedGroupNorm(FoldedNorm):
    """Over groups of channels of ``x [K B, C, ...]`` (Wu & He 2018)."""

    def __init__(self, name: str, plain: nn.GroupNorm) -> None:
        super().__init__(name, plain, nn.GroupNorm(plain.num_groups, plain.num_channels, plain.eps, affine=False))

    def of_each(self, own: Tensor, x: Tensor) -> Tensor:
        """A parameter [K, C] for each example, [K B, C, 1, ...]."""
        return own.repeat_interleave(len(x) // len(own), dim=0).view(*x.shape[:2], *[1] * (x.dim() - 2))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: FoldedNorm) -> Tensor:
        ctx.layer, ctx.x = layer, x
        y = x * layer.of_each(layer.weight, x)
        return y if layer.bias is None else y.add_(layer.of_each(layer.bias, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        layer: FoldedNorm = ctx.layer
        dx = grads[0] * layer.of_each(layer.weight, ctx.x) if ctx.needs_input_grad[0] else None
        layer.learn_from(ctx.x, grads[0])  # changes the weights
        return dx, None, None
