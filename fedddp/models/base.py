"""The base class of model sections."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from ..registry.choice import Off, UserPath


@dataclass(frozen=True)
class ModelFactory(ABC):
    """What a model section becomes: hyper-parameters with ``build``."""

    weights: Annotated[
        str | None,
        Off,
        UserPath,
        Field(
            description="file of weights to start from: runs/NAME/model.safetensors, another safetensors file, or a "
            "state_dict written by torch.save (default: off)",
        ),
    ] = field(default=None, kw_only=True)
    trainable: Annotated[
        tuple[str, ...],
        Field(
            description="parameters that train, by name ('head.*') or by layer ('@LayerNorm'); the others are frozen "
            "and not sent; empty = as the model has them",
        ),
    ] = field(default=(), kw_only=True)

    @abstractmethod
    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A new module for inputs of ``shape``, its parameters drawn from torch's global generator."""


@dataclass(frozen=True)
class ImportedModule(ModelFactory):
    """A user's class; its constructor gets the section's keys, but for those of every model that it does not take."""

    path: str
    module: Any
    """A class, or a function, that makes an `nn.Module`."""
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return self.module(**self.args)

    def table(self) -> dict[str, Any]:
        """The section's keys and values."""
        common = {"weights": self.weights, "trainable": list(self.trainable)}
        return {"name": self.path, **self.args, **{key: value for key, value in common.items() if value}}
