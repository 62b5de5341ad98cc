"""A model as one flat vector ``w [D]``: trainable parameters first, then float buffers.

Every algorithm is vector algebra on ``w``; only this file knows which slice is which layer. What does not change in
training stays out, since every rank makes it from the seed or from a file: frozen parameters, all buffers of a frozen
part (see `frozen_parts`), buffers that are not persistent (random features). Buffers that are not floating point
(BatchNorm's ``num_batches_tracked``) have no mean over clients: they stay out too and return to their initial value
whenever a vector is loaded, so nothing passes from one client to the next through them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import compress
from math import prod
from types import MethodType
from typing import Self

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
    num_frozen: int = field(default=0, compare=False)
    """Number of entries of the parameters that do not train."""
    constants: str = field(default="", compare=False)
    """SHA-256 of the parameters and buffers outside of ``w``; empty without any, or where it was not asked for."""

    @classmethod
    def of(cls, module: nn.Module, *, whole: bool = False) -> Self:
        """Read the layout of ``module``, and the SHA-256 of its constants if ``whole``.

        Raises:
            ValueError: nothing in it trains, or what does has several dtypes or a complex one.
        """
        refuse_complex(module)
        named = _flat_tensors(module)
        trainable = sum(t.numel() for _, t in named if isinstance(t, nn.Parameter))
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
            kinds=tuple(_kind(module, name) for name, _ in named),
            num_frozen=sum(p.numel() for p in module.parameters() if not p.requires_grad),
            constants=digest(constants(module)) if whole else "",
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
            view.fill_(any(_matches(name, kind, pattern) for pattern in patterns))
        return mask

    def part(self, kept: Sequence[bool], num_trainable: int) -> Self:
        """Return the layout of the tensors that are ``kept``, of which the first ``num_trainable`` entries train."""
        shapes = tuple(compress(self.shapes, kept))
        return replace(
            self,
            names=tuple(compress(self.names, kept)),
            shapes=shapes,
            num_trainable=num_trainable,
            dim=sum(map(prod, shapes)),
            kinds=tuple(compress(self.kinds, kept)),
        )

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


def training_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``module`` in ``dtype``; as it is if what trains has that type: the frozen part may be held in another."""
    trains = [p.dtype for p in module.parameters() if p.requires_grad]
    return module if all(kind == dtype for kind in trains) else module.to(dtype)


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


def freeze(module: nn.Module, trainable: Sequence[str]) -> nn.Module:
    """``module`` with only those parameters trainable that match a pattern (see `FlatSpec.mask`).

    Raises:
        ValueError: a pattern matches no parameter.
    """
    named = [(name, _kind(module, name), p) for name, p in module.named_parameters()]
    for pattern in trainable:
        if not any(_matches(name, kind, pattern) for name, kind, _ in named):
            few = ", ".join(name for name, _, _ in named[:6])
            raise ValueError(f"{pattern!r} matches no parameter; there are {few}{', ...' if len(named) > 6 else ''}")
    for name, kind, p in named:
        p.requires_grad_(p.requires_grad and any(_matches(name, kind, pattern) for pattern in trainable))
    return module


def frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The outermost parts of ``module`` that have parameters, none of which trains."""
    trains = [p.requires_grad for p in module.parameters()]
    if trains and not any(trains):
        return [module]
    return [part for child in module.children() for part in frozen_parts(child)]


def settle(module: nn.Module) -> nn.Module:
    """Keep the frozen parts of ``module`` in evaluation mode for good, whatever mode it is in.

    Their BatchNorm then computes with the statistics that it came with, and their dropout is off.
    """
    for part in frozen_parts(module):
        part.__dict__["train"] = MethodType(_stay, part)
        part.eval()
    return module


def buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers, with their names, that training may change: persistent ones outside of frozen parts."""
    constant = {id(buffer) for part in frozen_parts(module) for buffer in part.buffers()}
    kept = module.state_dict(keep_vars=True).keys()
    return [(name, b) for name, b in module.named_buffers() if name in kept and id(b) not in constant]


def constants(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that training does not change, by name."""
    change = {name for name, _ in (*_flat_tensors(module), *buffers(module))}
    return {n: t for n, t in (*module.named_parameters(), *module.named_buffers()) if n not in change}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of ``tensors``, with their names, types and shapes; empty for none."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest() if tensors else ""


def _flat_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [*trainable, *((name, b) for name, b in buffers(module) if b.is_floating_point())]


def _kind(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name.rpartition(".")[0])).__name__


def _matches(name: str, kind: str, pattern: str) -> bool:
    return fnmatchcase(f"@{kind}" if pattern.startswith("@") else name, pattern)


def _stay(self: nn.Module, mode: bool = True) -> nn.Module:
    """`nn.Module.train` of a part that stays in evaluation mode."""
    return nn.Module.train(self, False)
