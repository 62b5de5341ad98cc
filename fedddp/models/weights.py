"""Read weights from a file, compare them with a module's own and copy them in."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..comm.world import Place
from ..errors import OWN_CODE, UsageError, first_line, named
from ..flat import constants, digest, freeze
from ..registry.choice import read_file
from .frozen import hold_frozen_in
from .lora import LoRA
from .recomputed import recomputed

log = logging.getLogger("fedddp")


@dataclass(frozen=True)
class Weights:
    """Tensors under the names of a module's ``state_dict``.

    Attributes:
        tensors: name -> tensor.
        source: where they are from, for messages.
        absent: names in the module for which there are known to be none.
    """

    tensors: Mapping[str, Tensor]
    source: str
    absent: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, source: str) -> Self:
        """From a safetensors file or a ``state_dict`` that torch.save wrote. Raises UsageError."""
        try:
            content = read_file(path)
        except OSError as error:
            hint = (
                f"; give a file, such as {path / 'model.safetensors'}" if path.is_dir() else "; name an existing file"
            )
            raise UsageError(f"{source}: cannot be read ({error.strerror}){hint}") from None
        try:
            tensors: Any = load(content)
        except SafetensorError as error:
            tensors = _state_dict(content, source, str(error))
        return cls(tensors, source)

    def into(self, module: nn.Module, new: Container[str] = ()) -> nn.Module:
        """``module`` with these weights, but for the ``new`` ones, which it keeps.

        Raises:
            UsageError: names, shapes or values differ; it names the first difference.
        """
        own = {name: tensor for name, tensor in _tensors(module).items() if name not in new}
        for name, tensor in own.items():
            if name not in self.tensors:
                raise self._differs(f"has no {name!r}, which the model has")
            if self.tensors[name].shape != tensor.shape:
                shapes = f"{list(self.tensors[name].shape)}, the model's is {list(tensor.shape)}"
                raise self._differs(f"has {name!r} of shape {shapes}")
        for name in self.tensors:
            if name not in own and name not in new:
                raise self._differs(f"has {name!r}, which the model does not have")
        for name, tensor in own.items():
            tensor.copy_(self._as(tensor.dtype, name))
        return module

    def new(self, module: nn.Module) -> tuple[str, ...]:
        """The tensors of ``module`` that keep their own values: those of a head of other classes, and ``absent`` ones.

        The last layer is such a head if each of its tensors differs from the one here, in its first axis alone.
        """
        own, there = _tensors(module), self.tensors
        last = next(reversed(own)).rpartition(".")[0] if own else ""
        head = {name: tensor for name, tensor in own.items() if name.rpartition(".")[0] == last and name in there}
        differ = all(t.shape[1:] == there[n].shape[1:] and t.shape[:1] != there[n].shape[:1] for n, t in head.items())
        return (*(head if differ else ()), *self.absent)

    def _as(self, dtype: torch.dtype, name: str) -> Tensor:
        tensor = self.tensors[name]
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{self.source}: {name!r} has entries that are NaN or infinite; start from other weights")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of complex entries, which the comparison below finds
            cast = tensor.to(dtype)
        if not torch.equal(cast.to(tensor.dtype), tensor):
            kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, dtype)]
            remedy = "; set client.precision=float64" if tensor.dtype == torch.float64 else ""
            raise UsageError(f"{self.source}: {name!r} is {kinds[0]}, which {kinds[1]} does not hold exactly{remedy}")
        return cast

    def _differs(self, what: str) -> UsageError:
        return UsageError(f"{self.source}: {what}; give weights of the configured model")


def started_from(section: Any, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """``make``; where the model's ``section`` names ``weights``, each module holds them. Raises UsageError."""
    if not hasattr(section, "start"):  # a user's own section need not have it
        return make
    read: list[Weights | None] = []  # once, for the first module
    whole: list[nn.Module] = []  # one whose every weight was read: the others are copies of it

    def started() -> nn.Module:
        if whole:
            return copy.deepcopy(whole[0])
        drawn = torch.get_rng_state()
        module = make()
        first = not read
        read[:] = read or [section.start(module)]
        (weights,) = read
        if weights is None:
            return module
        new = weights.new(module)
        if new and first and Place.from_env().rank == 0:
            log.warning("%s: has nothing that fits %s; these start anew", weights.source, ", ".join(new))
        module = weights.into(module, new)
        if not new:
            with suppress(*OWN_CODE):  # a module that cannot be copied is made again
                whole.append(copy.deepcopy(module))
                read[:] = [None]
                torch.set_rng_state(drawn)  # as it is beside a copy, for what is drawn next
        return module

    return started


def trained_in_part(section: Any, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """``make``; where the model's ``section`` names what is ``trainable`` or has adapters, the rest is frozen.

    What is frozen is held once, however many modules are made. Raises UsageError.
    """
    patterns, dtype = tuple(getattr(section, "trainable", ())), getattr(section, "frozen_dtype", None)
    lora, again = getattr(section, "lora", LoRA()), getattr(section, "checkpointing", False)
    held: dict[str, Tensor] = {}

    def build() -> nn.Module:
        module = make()
        if patterns:
            with named("model.trainable"):
                freeze(module, patterns)
        if again:  # first: a layer with an adapter is no block
            recomputed(module)
        if lora.rank:
            lora.into(module, beside=patterns)
        if dtype:
            hold_frozen_in(module, getattr(torch, dtype))
        for name, tensor in constants(module).items():
            first = held.setdefault(name, tensor.data)
            if torch.equal(first, tensor.data):  # not where another seed drew others
                tensor.data = first
        return module

    return build


def start_signature(section: Any, module: nn.Module) -> dict[str, str]:
    """What must be equal on every rank of the weights that training starts from, where they are given."""
    if not getattr(section, "reads", False):  # a user's own section need not have it
        return {}
    return {"initial weights": digest(module.state_dict())[:16]}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}


def _state_dict(content: bytes, source: str, reason: str) -> dict[str, Tensor]:
    """What torch.save wrote, by the unpickler that makes tensors and plain containers and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{source}: is neither safetensors ({reason}) nor a state_dict that torch.load(weights_only=True) reads "
            f"({first_line(error)}); write it with torch.save(module.state_dict(), FILE)"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        inside = f" (its keys are {', '.join(map(repr, list(tensors)[:4]))})" if isinstance(tensors, dict) else ""
        raise UsageError(f"{source}: is no state_dict{inside}; write it with torch.save(module.state_dict(), FILE)")
    return {str(name): tensor for name, tensor in tensors.items()}
