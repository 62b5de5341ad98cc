"""Low-rank adapters (Hu et al. 2022, "LoRA: Low-rank adaptation of large language models"), by the library peft."""

import re
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ..errors import UsageError
from ..registry.choice import RULES
from ..registry.optional import imported


class LoRA(BaseModel):
    """Adapters of linear layers: W x becomes W x + (alpha / rank) B A x, of which A and B alone train and are sent.

    A is drawn, B is 0: training begins with the model as it was.
    """

    model_config: ClassVar[ConfigDict] = {**RULES, "frozen": True}

    rank: int = Field(default=0, ge=0, le=4096, description="rows of A and columns of B of each adapter; 0 = off")
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="adapters count alpha / rank times")
    targets: tuple[str, ...] = Field(
        default=(),
        description="linear layers with adapters, by name or its end: 'q_proj', 'blocks.0.*'; empty = all but the last",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that an input of an adapter is set to 0 in training; clients are then trained one by "
        "one",
    )

    @property
    def key(self) -> str:
        """The key that turns adapters on, for messages."""
        return f"model.lora.rank={self.rank}"

    def into(self, module: nn.Module, beside: Sequence[str] = ()) -> nn.Module:
        """``module`` with adapters; everything else is frozen, but for what trained before and is named in ``beside``.

        Parameters of a layer with an adapter are then called ``LAYER.base_layer.weight``, those of the adapter
        ``LAYER.lora_A.default.weight`` and ``LAYER.lora_B.default.weight``.

        Args:
            module: the model.
            beside: patterns of parameters that train beside the adapters, of which none means nothing else.

        Raises:
            UsageError: peft is missing, or a target matches no layer.
        """
        peft = imported("peft", "llm", self.key)
        kept = [p for p in module.parameters() if p.requires_grad] if beside else []
        chosen = self._chosen(module)
        whole = "|".join(map(re.escape, chosen))  # a list would match ends of names, too
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a Conv1D is transposed, which peft then takes into account
            peft.inject_adapter_in_model(config, module)
        for parameter in kept:
            parameter.requires_grad_(True)
        return module

    def _chosen(self, module: nn.Module) -> list[str]:
        """The names of the layers that get adapters. Raises UsageError."""
        layers = [name for name, part in module.named_modules() if type(part) in _linear()]
        if not layers:
            raise UsageError(f"{self.key}: the model has no linear layer (nn.Linear); use model.lora.rank=0")
        if layers == [""]:
            raise UsageError(f"{self.key}: the model is one linear layer; an adapter needs a layer inside of a model")
        if not self.targets:
            return layers[:-1] or layers
        for pattern in self.targets:
            if not any(_matches(name, pattern) for name in layers):
                ends = [*dict.fromkeys(_end(name) for name in layers)]
                listed = f"{', '.join(ends[:12])}{', ...' if len(ends) > 12 else ''}"
                raise UsageError(
                    f"model.lora.targets={list(self.targets)}: {pattern!r} matches no linear layer; there are {listed}"
                )
        return [name for name in layers if any(_matches(name, pattern) for pattern in self.targets)]


def _linear() -> tuple[type, ...]:
    """The classes of linear layers that peft adapts: torch's, and that of GPT-2, whose weight is transposed."""
    conv1d: Any = imported("transformers.pytorch_utils", "llm", "model.lora").Conv1D
    return nn.Linear, conv1d


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _end(name: str) -> str:
    """The part of a layer's name that says which of its block it is; of one in a list, with its number."""
    before, _, last = name.rpartition(".")
    return f"{before.rpartition('.')[2]}.{last}".lstrip(".") if last.isdecimal() else last
