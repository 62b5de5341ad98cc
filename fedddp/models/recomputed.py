"""Gradient checkpointing: blocks keep their inputs alone, and compute the rest again in the backward pass."""

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError


def recomputed(module: nn.Module) -> nn.Module:
    """``module`` with its blocks checkpointed in training (Chen et al. 2016, "Training deep nets with sublinear memory
    cost"): by its own method, as models of transformers have one, or else each of several layers of one class in a list
    or sequence.

    Raises:
        UsageError: it has no blocks.
    """
    old = getattr(module, "gradient_checkpointing_enable", None)
    own = getattr(module, "activation_checkpointing_enable", old)  # its name from transformers 5.2x on
    if own is not None and getattr(module, "supports_gradient_checkpointing", True):
        own({"use_reentrant": False})
        getattr(module, "disable_input_require_grads", lambda: None)()  # a hook that only the other variant needs
        return module
    blocks = list(_blocks(module))
    if not blocks:
        raise UsageError(
            f"model.checkpointing=true: {type(module).__name__} has no blocks to compute again (layers of one class in "
            "an nn.ModuleList or nn.Sequential); leave it off"
        )
    for block in blocks:
        block.forward = MethodType(_again, block)
    return module


def _again(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A block's own forward; in training, its values are computed again when the backward pass needs them."""
    if not self.training:
        return type(self).forward(self, *args, **kwargs)
    return checkpoint(type(self).forward, self, *args, use_reentrant=False, **kwargs)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks: layers with layers inside, of which several of one class follow each other."""
    parts = [part for part in module.children() if any(True for _ in part.children())]
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(parts) > 1 and len(set(map(type, parts))) == 1:
        yield from parts
    else:
        for child in module.children():
            yield from _blocks(child)
