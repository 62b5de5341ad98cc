"""What the server adds to layers with low-rank adapters: a matrix for each, which no client trains."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """x R^T, with R [out, in] a buffer that begins at 0."""

    def __init__(self, in_features: int, out_features: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)  # pyright: ignore[reportArgumentType]


def with_residuals(module: nn.Module) -> nn.Module:
    """Return ``module``, whose layers with adapters of peft compute x W^T + s (x R^T + (x A^T) B^T) from now on.

    R is called ``LAYER.lora_residual.weight``.
    """
    for part in list(module.modules()):
        if "default" in getattr(part, "lora_A", ()):
            adapted: Any = part
            down, up = adapted.lora_A["default"], adapted.lora_B["default"]
            part.add_module("lora_residual", Residual(down.in_features, up.out_features, down.weight))
            part.register_forward_hook(_add)
    return module


def _add(part: Any, args: tuple[Any, ...], outputs: Tensor) -> Tensor:
    return outputs + part.scaling["default"] * part.lora_residual(args[0].to(part.lora_residual.weight.dtype))
