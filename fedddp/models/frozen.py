"""Hold the frozen layers of a model in a type of their own: half the memory in bfloat16."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..errors import UsageError
from ..flat import frozen_parts


def hold_frozen_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``module`` with its frozen parts in ``dtype``, which cast what they are given to it, and their outputs back.

    The layers that train see the same types as before. A frozen parameter of a layer of which another one trains stays
    as it is.

    Raises:
        UsageError: no part is frozen.
    """
    trains = next((p for p in module.parameters() if p.requires_grad), None)
    parts = [called for part in frozen_parts(module) for called in _called(part)]
    if trains is None or not parts:
        raise UsageError(
            f"model.frozen_dtype={str(dtype).removeprefix('torch.')!r}: no layer of the model is frozen beside others "
            "that train; name those that train in model.trainable, or write model.frozen_dtype=off"
        )
    for part in parts:
        border = Border(trains)
        part.to(dtype).register_forward_pre_hook(border.enter, with_kwargs=True)
        part.register_forward_hook(border.leave)
    return module


class Border:
    """Casts between a frozen part's own type and that of ``trains``, a parameter that trains.

    Both are read at the call, since trials compute in float64 throughout.
    """

    def __init__(self, trains: nn.Parameter) -> None:
        self.trains = trains

    def enter(self, part: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What the part is given, in its type."""
        dtype = next(p.dtype for p in part.parameters() if p.is_floating_point())
        return _cast(args, dtype), _cast(kwargs, dtype)

    def leave(self, part: nn.Module, args: Any, outputs: Any) -> Any:
        """What it gives, in the type of the part that trains."""
        return _cast(outputs, self.trains.dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _called(part: nn.Module) -> Iterator[nn.Module]:
    """``part``, or the parts of one that only lists them (`nn.ModuleList`): a list is never called."""
    if type(part).forward is not nn.Module.forward:
        yield part
    else:
        for child in part.children():
            yield from _called(child)
