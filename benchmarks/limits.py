"""How much work local training is, counted, and how fast a device can do it, measured: the roofline of a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedddp.data import num_steps

SIZES = {"cpu": (2**24, 512), "cuda": (2**30, 8192)}
"""Bytes copied and the side of the matrices multiplied: on a GPU far beyond its caches."""
REPEATS = 10
PASSES = 3
"""Over a client's weights in a step: read forwards, read backwards, written by the update."""


@dataclass(frozen=True)
class Work:
    """What has to pass through memory at least, and the floating-point operations."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Limits:
    """What a device reached: memory traffic in a copy, float32 operations in a product of matrices, per second."""

    bytes: float
    flops: float

    def seconds(self, work: Work) -> float:
        """The least time the device needs."""
        return max(work.bytes / self.bytes, work.flops / self.flops)

    def bound(self, work: Work) -> str:
        """What takes longer."""
        return "memory" if work.bytes / self.bytes > work.flops / self.flops else "arithmetic"


def measured(device: torch.device) -> Limits:
    """The best of several goes. Matrices are multiplied in full float32, as linear layers are by default."""
    size, side = SIZES[device.type]
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    copying = _best(lambda: target.copy_(source), device)
    multiplying = _best(lambda: torch.mm(a, b), device)
    return Limits(2 * size / copying, 2 * side**3 / multiplying)


def _best(work: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one ``work``, in the fastest of some goes of some in a row, the first of all left out."""
    goes = []
    for _ in range(4):
        began = _now(device)
        for _ in range(REPEATS):
            work()
        goes.append((_now(device) - began) / REPEATS)
    return min(goes[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def of_training(
    model: nn.Module, shape: tuple[int, ...], *, clients: int, examples: int, epochs: int, batch_size: int
) -> Work:
    """``clients`` of ``examples`` each, inputs of ``shape``: the weights' traffic and the layers' operations.

    A multiply-add is two operations, forwards, for the gradient of the weights, and for that of the input, which the
    first layer does without. Activations are not counted.
    """
    parameters = sum(p.numel() for p in model.parameters())
    steps = int(num_steps(torch.tensor(examples), epochs, batch_size))
    first, *rest = _multiply_adds(model, shape)
    return Work(
        bytes=clients * steps * PASSES * 4 * parameters,
        flops=clients * examples * epochs * (4 * first + 6 * sum(rest)),
    )


def _multiply_adds(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Of each linear or convolution layer in the order of use, for one example."""
    found: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        found.append(layer.weight.numel() * (output.numel() // len(layer.weight)))  # once a position

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return found
