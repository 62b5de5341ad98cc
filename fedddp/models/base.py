"""The base class of model sections."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from ..registry.choice import Off, UserPath, dump, user_path
from .lora import LoRA
from .weights import Weights


@dataclass(frozen=True)
class ModelFactory(ABC):
    """What a model section becomes: hyper-parameters with ``build``."""

    weights: Annotated[
        str | None,
        Off,
        UserPath,
        Field(
            description="file of weights to start from: runs/NAME/model.safetensors, another safetensors file, or a "
            "state_dict written by torch.save; a last layer of other classes starts anew (default: off)",
        ),
    ] = field(default=None, kw_only=True)
    trainable: Annotated[
        tuple[str, ...],
        Field(
            description="parameters that train, by name ('head.*') or by layer ('@LayerNorm'); the others are frozen "
            "and not sent; empty = as the model has them",
        ),
    ] = field(default=(), kw_only=True)
    frozen_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        Off,
        Field(
            description="type that frozen layers are held and computed in; the others keep client.precision (default: "
            "off, the same)",
        ),
    ] = field(default=None, kw_only=True)
    lora: LoRA = field(default=LoRA(), kw_only=True)
    checkpointing: Annotated[
        bool,
        Field(
            description="keep only the inputs of the model's blocks in a training step and compute the rest again: "
            "less memory, more time"
        ),
    ] = field(default=False, kw_only=True)

    @abstractmethod
    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A new module for inputs of ``shape``, its parameters drawn from torch's global generator."""

    def start(self, module: nn.Module) -> Weights | None:
        """The weights that training of ``module`` starts from; None for ``build``'s own. Raises UsageError."""
        path = self.weights
        return None if path is None else Weights.read(user_path(path), f"model.weights={path!r}")

    @property
    def reads(self) -> bool:
        """Whether `start` reads weights."""
        return self.weights is not None


COMMON = ("weights", "trainable", "frozen_dtype", "lora", "checkpointing")


@dataclass(frozen=True)
class ImportedModule(ModelFactory):
    """A user's class; its constructor gets the section's keys, but for those of every model that it does not take."""

    makes: ClassVar[type] = nn.Module

    path: str
    module: Any
    """A class, or a function, that makes an `nn.Module`."""
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return self.module(**self.args)

    def table(self) -> dict[str, Any]:
        """The section's keys and values."""
        changed = {f.name for f in fields(self) if f.name in COMMON and getattr(self, f.name) != f.default}
        return {"name": self.path, **self.args, **{key: v for key, v in dump(self).items() if key in changed}}
