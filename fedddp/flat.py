"""A model as one flat vector ``w [D]``: trainable parameters first, then frozen ones and float buffers.

Every algorithm is vector algebra on ``w``; only this file knows which slice is which layer. Buffers that are not
floating point (BatchNorm's ``num_batches_tracked``) have no mean over clients: they stay out of ``w`` and return to
their initial value whenever a vector is loaded, so nothing passes from one client to the next through them. Buffers
that are not persistent stay out too: they are constants that every rank builds from the seed (random features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatSpec:
    """Where each named tensor lies in ``w``: ``names[i]`` has ``shapes[i]``; the first ``num_trainable`` train."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_trainable: int
    dim: int
    dtype: torch.dtype
    kinds: tuple[str, ...] = field(default=(), compare=False)
    """The class of the layer that each tensor belongs to."""

    @classmethod
    def of(cls, module: nn.Module) -> FlatSpec:
        """Read the layout of ``module``. Raises ValueError without parameters, or for mixed or complex dtypes."""
        refuse_complex(module)
        named = _flat_tensors(module)
        trainable = sum(t.numel() for _, t in named if isinstance(t, nn.Parameter) and t.requires_grad)
        dtypes = {t.dtype for _, t in named}
        if not trainable:
            raise ValueError(f"{type(module).__name__} has no trainable parameter")
        if len(dtypes) > 1:
            raise ValueError(f"{type(module).__name__} mixes {sorted(map(str, dtypes))}: one flat vector has one dtype")
        return cls(
            names=tuple(name for name, _ in named),
            shapes=tuple(tuple(t.shape) for _, t in named),
            num_trainable=trainable,
            dim=sum(t.numel() for _, t in named),
            dtype=dtypes.pop(),
            kinds=tuple(type(module.get_submodule(name.rpartition(".")[0])).__name__ for name, _ in named),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many entries of ``w`` each tensor has."""
        return tuple(prod(shape) for shape in self.shapes)

    def views(self, w: Tensor) -> dict[str, Tensor]:
        """Views into ``w [..., D]``, name -> [..., *shape]; writing to one writes to ``w``."""
        views, offset = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = prod(shape)
            views[name] = w[..., offset : offset + size].unflatten(-1, shape or (1,))
            if not shape:
                views[name] = views[name].squeeze(-1)
            offset += size
        return views

    def mask(self, patterns: Sequence[str]) -> Tensor:
        """bool [D], true where a tensor's name matches one of the shell-style ``patterns``.

        A pattern that begins with @ is of its layer's class: "@BatchNorm*".
        """
        mask, kinds = torch.zeros(self.dim, dtype=torch.bool), self.kinds or ("",) * len(self.names)
        for (name, view), kind in zip(self.views(mask).items(), kinds, strict=True):
            view.fill_(any(fnmatchcase(f"@{kind}" if p[0] == "@" else name, p) for p in patterns if p))
        return mask

    def layers(self) -> list[str]:
        """The layers that have trainable tensors, in the model's order: what their tensors' names begin with."""
        trainable, offset = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            trainable += [name.rpartition(".")[0]] if offset < self.num_trainable else []
            offset += size
        return list(dict.fromkeys(trainable))


class FlatModule:
    """An `nn.Module` whose parameters and float buffers are views into one vector ``w [D]``, on one device."""

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device)
        self.spec = FlatSpec.of(module)
        self.w = flatten(module)
        views = self.spec.views(self.w)
        for name, tensor in _flat_tensors(module):
            tensor.data = views[name]
        self.params = [p for p in module.parameters() if p.requires_grad]
        self._held = [(b, b.clone()) for name, b in module.named_buffers() if name not in views]

    def load(self, w: Tensor) -> None:
        """Copy ``w [D]`` in; buffers outside the vector return to their initial values."""
        self.w.copy_(w)
        for buffer, initial in self._held:
            buffer.copy_(initial)


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``module`` with its floating-point tensors in ``dtype``. Raises ValueError for complex ones."""
    refuse_complex(module)
    return module.to(dtype)


def refuse_complex(module: nn.Module) -> None:
    """Raise ValueError if a parameter or buffer is complex: as a real number it would lose its imaginary part."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_complex():
            raise ValueError(
                f"{name} is {tensor.dtype}, and in a vector of real numbers its imaginary part would be lost; keep "
                "two real tensors instead (torch.view_as_real)"
            )


def flatten(module: nn.Module) -> Tensor:
    """The vector [D] of ``module``'s current values, a copy."""
    return torch.cat([t.detach().reshape(-1) for _, t in _flat_tensors(module)])


def _flat_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = list(module.named_parameters())
    trainable = [(n, p) for n, p in named if p.requires_grad]
    frozen = [(n, p) for n, p in named if not p.requires_grad]
    kept = module.state_dict(keep_vars=True).keys()  # a buffer that is not persistent is a constant
    buffers = [(n, b) for n, b in module.named_buffers() if b.is_floating_point() and n in kept]
    return [*trainable, *frozen, *buffers]
