"""In which precision a model computes, and how images lie in memory for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def arithmetic(device: torch.device | str, autocast: bool) -> AbstractContextManager[Any]:
    """What a forward pass runs in, again and again: nothing, or `torch.autocast` to bfloat16.

    The backward pass needs none: it takes the operations' own way back, and the casts hand gradients over in the
    parameters' precision. Cast weights are not kept, since the weights change from one use to the next.
    """
    if not autocast:
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)


def channels_innermost(x: Tensor) -> Tensor:
    """A copy of images ``x [B, C, H, W]`` in which the channels of a pixel lie side by side.

    Strides are told outright: with one channel both layouts are the same memory, and PyTorch would go on in the other.
    """
    _, c, h, w = x.shape
    return torch.empty_strided(x.shape, (c * h * w, 1, w * c, c), dtype=x.dtype, device=x.device).copy_(x)


def gains_innermost(module: nn.Module, call: Callable[[Tensor], object], x: Tensor) -> bool:
    """Whether ``module`` is faster on `channels_innermost` of images like ``x``, and runs on them.

    PyTorch's convolutions on a CPU are, 1.2 to 1.5 times for a whole training step. A forward of one's own need not
    run: ``view`` may be called in it on what is laid out otherwise then. ``call`` tries it, in evaluation mode.
    """
    if x.device.type != "cpu" or x.dim() != 4 or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return False
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(channels_innermost(x))
    except Exception:  # whatever it is: such a model is trained on images as they are
        return False
    finally:
        module.train(training)
    return True
