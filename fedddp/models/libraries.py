"""Image models of torchvision and timm, by their names there."""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from ..errors import UsageError
from ..registry.choice import Member, Off
from ..registry.optional import imported
from ..registry.spelling import suggestion
from .base import ModelFactory
from .weights import Weights

AUXILIARY: Mapping[str, Mapping[str, Any]] = {name: {"aux_logits": False} for name in ("googlenet", "inception_v3")}
"""Models of torchvision with further heads that give several outputs in training, which are left out."""


@dataclass(frozen=True)
class LibraryModel(ModelFactory):
    """A model of a library, built anew with a head of as many outputs as the task has."""

    model: Annotated[str, Member] = ""
    pretrained: Annotated[
        str | None,
        Off,
        Field(
            description="start from weights of the library by their name there, DEFAULT = its default, out of the "
            "library's cache: nothing is downloaded (default: off)"
        ),
    ] = None

    library: ClassVar[str]

    def __post_init__(self) -> None:
        if self.pretrained is not None and self.weights is not None:
            raise ValueError("pretrained and model.weights both say where training starts; write one of them off")

    @property
    def key(self) -> str:
        """The key that names the model, for messages."""
        return f"model.name='{self.library}:{self.model}'"

    @abstractmethod
    def released(self, name: str) -> nn.Module:
        """The model with the library's weights of that name. Raises UsageError if its cache does not have them."""

    def start(self, module: nn.Module) -> Weights | None:
        """The library's weights, if the section names some."""
        if self.pretrained is None:
            return super().start(module)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Weights(self.released(self.pretrained).state_dict(), f"model.pretrained={self.pretrained!r}")

    @property
    def reads(self) -> bool:
        return self.weights is not None or self.pretrained is not None

    def _check(self, known: Iterable[str], shape: tuple[int, ...], channels: int | None) -> None:
        """Raise UsageError if the library does not have the model, or the model does not take inputs of ``shape``."""
        names = list(known)
        if self.model not in names:
            near = suggestion(self.model, names) or f"; there are {', '.join(names[:4])}, ..."
            raise UsageError(f"{self.key}: {self.library} has no such model of classes{near}")
        if len(shape) != 3:
            raise UsageError(
                f"{self.key}: takes images, and inputs here have shape {list(shape)}; use data of [C, H, W]"
            )
        if channels not in (None, shape[0]):
            raise UsageError(
                f"{self.key}: takes images of {channels} channels, these have {shape[0]}; use model.name="
                f"'timm:{self.model}', whose first layer fits the images, or images of {channels} channels"
            )

    def _unknown(self, names: Iterable[str]) -> UsageError:
        there = list(names)
        near = suggestion(str(self.pretrained), there) or f"; there is {', '.join(there) or 'none'}"
        return UsageError(f"model.pretrained={self.pretrained!r}: {self.library} has no such weights of it{near}")

    def _missing(self, file: str, command: str) -> UsageError:
        return UsageError(
            f"model.pretrained={self.pretrained!r}: {file} is not in the library's cache; download it once with "
            f'python -c "{command}"'
        )


@dataclass(frozen=True)
class Torchvision(LibraryModel):
    """``torchvision:NAME``, a classifier of torchvision; images have three channels.

    Such as torchvision:resnet18. They are made for ImageNet: most halve an image five times, and little is
    left of 32x32 pixels.
    """

    library: ClassVar[str] = "torchvision"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        models = self._models()
        self._check(models.list_models(module=models), shape, channels=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisation that will change
            return models.get_model(self.model, weights=None, num_classes=num_classes, **AUXILIARY.get(self.model, {}))

    def released(self, name: str) -> nn.Module:
        models = self._models()
        weights = models.get_model_weights(self.model)
        if name not in weights.__members__:
            raise self._unknown(weights.__members__)
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights[name].url).name
        if not path.is_file():
            command = f"import torchvision as t; t.models.get_model({self.model!r}, weights={name!r})"
            raise self._missing(str(path), command)
        return models.get_model(self.model, weights=weights[name], **AUXILIARY.get(self.model, {}))

    def _models(self) -> Any:
        return imported("torchvision.models", "vision", self.key)


@dataclass(frozen=True)
class Timm(LibraryModel):
    """``timm:NAME``, an image model of timm; its first layer fits the channels.

    Such as timm:vit_tiny_patch16_224. ``pretrained`` is a tag (timm:resnet18 has a1_in1k, ...).
    """

    library: ClassVar[str] = "timm"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        timm = self._timm()
        self._check(timm.list_models(), shape, channels=None)
        return timm.create_model(self.model, num_classes=num_classes, in_chans=shape[0])

    def released(self, name: str) -> nn.Module:
        timm, hub = self._timm(), imported("huggingface_hub", "vision", self.key)
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{self.model}.*")]
        if name not in ("DEFAULT", *tags):
            raise self._unknown(["DEFAULT", *tags] if tags else [])
        model = self.model if name == "DEFAULT" else f"{self.model}.{name}"
        source = timm.get_pretrained_cfg(model).hf_hub_id
        path = hub.try_to_load_from_cache(source, "model.safetensors")
        if not isinstance(path, str):
            raise self._missing(source, f"import timm; timm.create_model({model!r}, pretrained=True)")
        return timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"file": path})

    def _timm(self) -> Any:
        return imported("timm", "vision", self.key)
