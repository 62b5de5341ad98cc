"""Inputs of several tensors, a dict or a tuple: each example is one row of numbers until the model is called.

So everything that handles examples (partitions, batches, batched clients, privacy, files) handles one tensor. A row
holds float32 or float64 numbers, and only what these hold exactly is packed: nothing is rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .inputs import as_inputs

LARGEST = 2**24
"""Whole numbers up to here are exact in float32, in which most runs compute."""
Parts = Mapping[str, Any] | tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """Where the tensors of an example lie in its row; ``names`` are those of a dict, a tuple has none."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(prod, self.shapes))

    def __str__(self) -> str:
        names = self.names or tuple(map(str, range(len(self.shapes))))
        parts = zip(names, self.dtypes, self.shapes, strict=True)
        return ", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in parts)

    def unpack(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tensors of rows ``x [..., L]``: whole numbers as they were, pixels (uint8) from 0 to 1, else as x is."""
        rows = x.split([prod(shape) for shape in self.shapes], dim=-1)
        return tuple(
            _typed(row.reshape(*x.shape[:-1], *shape), dtype)
            for row, shape, dtype in zip(rows, self.shapes, self.dtypes, strict=True)
        )

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``module`` with the tensors of rows: a hook, which leaves any other call as it is."""
        rows = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.shape[-1] != len(self):
            return None
        parts = self.unpack(rows)
        return ((), dict(zip(self.names, parts, strict=True))) if self.names else (parts, {})

    def form(self) -> dict[str, Any]:
        """The layout as JSON has it; see `of_form`."""
        return {"names": list(self.names), "shapes": [list(s) for s in self.shapes], "dtypes": list(self.dtypes)}

    @classmethod
    def of_form(cls, form: Mapping[str, Any]) -> "Layout":
        """The layout that `form` describes."""
        return cls(tuple(form["names"]), tuple(map(tuple, form["shapes"])), tuple(form["dtypes"]))


def packed(parts: Parts, what: str) -> tuple[Tensor, Layout]:
    """Tensors [n, ...] of n examples as rows [n, L], and their layout. Raises UsageError."""
    names = tuple(map(str, parts)) if isinstance(parts, Mapping) else ()
    values = parts.values() if isinstance(parts, Mapping) else parts
    labels = names or tuple(map(str, range(len(parts))))
    tensors = [as_inputs(value, f"{what} {label!r}") for label, value in zip(labels, values, strict=True)]
    if not tensors or len({len(t) if t.dim() else -1 for t in tensors}) > 1 or not tensors[0].dim():
        sizes = ", ".join(f"{label} {list(t.shape)}" for label, t in zip(labels, tensors, strict=True))
        raise UsageError(
            f"{what} are several tensors of unequal length ({sizes or 'none'}); give each [n, ...], an example in each "
            "row",
            code="inputs-form",
        )
    for label, t in zip(labels, tensors, strict=True):
        if not t.is_floating_point() and t.numel() and int(t.long().abs().max()) > LARGEST:
            raise UsageError(
                f"{what} {label!r} reach {int(t.long().abs().max())}; beside other tensors whole numbers up to "
                f"{LARGEST} can be given: number the values from 0",
                code="inputs-range",
            )
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in tensors)
    layout = Layout(names, tuple(tuple(t.shape[1:]) for t in tensors), dtypes)
    return torch.cat([t.reshape(len(t), -1).to(wide) for t in tensors], dim=1), layout


def several(x: Any, examples: int) -> bool:
    """Whether ``x`` are several tensors, not ``examples`` (or one) of a single kind: a dict, or a tuple of arrays."""
    tensors = isinstance(x, tuple) and len(x) > 1 and all(hasattr(part, "shape") for part in x)
    return isinstance(x, Mapping) or (tensors and len(x) != examples)


def one(parts: Parts, what: str) -> tuple[Tensor, Layout]:
    """The row [L] of one example, of tensors [...], and its layout."""
    alone: Any = {k: [v] for k, v in parts.items()} if isinstance(parts, Mapping) else tuple([v] for v in parts)
    rows, layout = packed(alone, what)
    return rows[0], layout


def _typed(part: Tensor, dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    if kind == torch.uint8:
        return part / 255
    return part if kind.is_floating_point else part.round().to(kind)
