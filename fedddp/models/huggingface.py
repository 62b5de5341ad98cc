"""Models of transformers from a folder or its cache: language models, classifiers of texts and of images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data.inputs import Shape
from ..errors import OWN_CODE, UsageError, first_line
from ..registry.choice import Member
from ..registry.optional import imported
from .base import ModelFactory
from .sequence import PADDING
from .weights import Weights

KINDS = {
    (True, True): "AutoModelForCausalLM",
    (True, False): "AutoModelForSequenceClassification",
    (False, False): "AutoModelForImageClassification",
}
"""Whether inputs are tokens, whether every position is predicted -> the class that makes the model."""


@dataclass(frozen=True)
class HuggingFace(ModelFactory):
    """``hf:PATH``, a model of transformers from its folder, or by its name there.

    What it becomes follows from task and data: a language model for task.name=next_token, else a classifier of texts or
    of images with as many outputs as the task has. A model by name is read from the library's cache: nothing is
    downloaded. Where its configuration has a padding id, attention of a classifier leaves out tokens of that id.
    """

    path: Annotated[str, Member] = ""
    pretrained: Annotated[
        bool, Field(description="start from the model's weights; false = draw them, in the form of its config.json")
    ] = True

    @property
    def key(self) -> str:
        """The key that names the model, for messages."""
        return f"model.name='hf:{self.path}'"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        shape = shape if isinstance(shape, Shape) else Shape(shape)
        library = imported("transformers", "hf", self.key)
        config = self._config(library, shape, num_classes)
        padded = getattr(config, "pad_token_id", None) is not None
        attends = shape.vocabulary and padded and not shape.per_position  # causal: nothing sees the padding behind it
        if shape.vocabulary and not padded:
            config.pad_token_id = PADDING  # by which a classifier finds the last token of a text
        try:
            with _quiet(library):
                maker = getattr(library, KINDS[bool(shape.vocabulary), shape.per_position])
                module: nn.Module = maker.from_config(config, dtype=torch.float32)
        except OWN_CODE as error:
            raise UsageError(f"{self.key}: cannot be built for this task ({first_line(error)})") from None
        forward = _masked if attends else _unmasked if shape.vocabulary else _of_images
        module.forward = MethodType(forward, module)
        return module.train()

    def start(self, module: nn.Module) -> Weights | None:
        """The model's own weights, but for those that it does not have for this task: a head, mostly."""
        if not self.pretrained or self.weights is not None:
            return super().start(module)
        cls: Any = type(module)
        library = imported("transformers", "hf", self.key)
        try:
            with _quiet(library), torch.random.fork_rng(devices=[]):
                read, found = cls.from_pretrained(
                    self.path,
                    config=module.config,
                    dtype=torch.float32,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except OWN_CODE as error:
            raise UsageError(
                f"{self.key}: its weights cannot be read ({first_line(error)}); model.pretrained=false draws them"
            ) from None
        other = {name: shapes for name, *shapes in found["mismatched_keys"]}
        body = [name for name in other if name.startswith(f"{cls.base_model_prefix}.")]
        if body:
            there, here = (list(shape) for shape in other[body[0]])
            raise UsageError(
                f"{self.key}: has {body[0]!r} of shape {there}, its config.json says {here}; use files of one model"
            )
        new = {*found["missing_keys"], *other}
        tensors = {name: tensor for name, tensor in read.state_dict().items() if name not in new}
        if not tensors:
            raise UsageError(f"{self.key}: has no weights of this model; model.pretrained=false draws them")
        return Weights(tensors, self.key, tuple(sorted(new)))

    @property
    def reads(self) -> bool:
        return self.weights is not None or self.pretrained

    def _config(self, library: Any, shape: Shape, num_classes: int) -> Any:
        """The model's configuration for this task. Raises UsageError where the model does not fit the data."""
        try:
            with _quiet(library):
                config = library.AutoConfig.from_pretrained(self.path, local_files_only=True)
        except OWN_CODE as error:
            raise UsageError(
                f"{self.key}: cannot be read ({first_line(error)}); give a folder with a config.json, or download it "
                "once: hf download NAME"
            ) from None
        tokens, channels = shape.vocabulary, getattr(config, "num_channels", None)
        if tokens and not self.pretrained:
            config.vocab_size = tokens
        known, most = (getattr(config, name, None) for name in ("vocab_size", "max_position_embeddings"))
        if not tokens and channels not in (None, shape[0]):
            raise UsageError(f"{self.key}: takes images of {channels} channels, and inputs have shape {list(shape)}")
        if tokens and known is not None and (tokens > known or (shape.per_position and num_classes != known)):
            raise UsageError(
                f"{self.key}: knows {known} token ids, the data have {tokens}; read them with its own tokenizer, "
                "or draw a model of as many: model.pretrained=false"
            )
        if tokens and most is not None and shape[0] > most:
            raise UsageError(f"{self.key}: reads up to {most} tokens, inputs have {shape[0]}; shorten them (data.args)")
        config.num_labels, config.use_cache = num_classes, False
        return config


def _masked(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, input_ids=x, attention_mask=(x != self.config.pad_token_id).long()).logits


def _unmasked(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, input_ids=x, attention_mask=torch.ones_like(x)).logits


def _of_images(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, pixel_values=x).logits


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's progress bars and reports: what matters of them is in our own lines."""
    logs = library.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()
