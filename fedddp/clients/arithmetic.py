"""In which precision a model computes: that of its parameters, or bfloat16 while these keep theirs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def arithmetic(device: torch.device | str, autocast: bool) -> AbstractContextManager[Any]:
    """What a forward pass runs in, again and again: nothing, or `torch.autocast` to bfloat16.

    The backward pass needs none: it takes the operations' own way back, and the casts hand gradients over in the
    parameters' precision. Cast weights are not kept, since the weights change from one use to the next.
    """
    if not autocast:
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)
