"""Continue a text by the language model of a run."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data.readers.tokens import Tokenizer
from ..errors import UsageError, named
from ..registry.choice import user_path
from ..trained import Trained
from .export.command import chosen


@dataclass(frozen=True)
class Text:
    """How a model reads and writes text; ``end`` is the token that ends one, if it knows one."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end: int | None = None


def text_of(model: Trained) -> Text | None:
    """Return how a model reads text: by characters or the run's tokenizer; None for one that does not."""
    data, alphabet, decode = model.table.get("data", {}), model.dataset.alphabet, model.dataset.decode
    if alphabet is not None and decode is not None:
        token = {character: i for i, character in enumerate(alphabet, 1)}
        unknown = token.get("?", 1)
        return Text(lambda text: [token.get(character, unknown) for character in text], decode)
    name = data.get("args", {}).get("tokenizer", "")
    if not name:
        return None
    with named():
        tokenizer = Tokenizer.read(name, user_path(data.get("root", "data")))
    return Text(tokenizer.encode, tokenizer.decode, tokenizer.end)


def readable(model: Trained) -> Trained:
    """Return ``model``; what a language model writes is text, not numbers of tokens."""
    if model.task.targets != "positions" or (text := text_of(model)) is None:
        return model
    return replace(model, task=replace(model.task, decode=text.decode))  # pyright: ignore[reportCallIssue]


def continued(run: Path, prompt: str, args: Namespace, layer: Mapping[str, Any]) -> str:
    """Return ``prompt`` with what the model of ``run`` writes behind it. Raises UsageError."""
    model = chosen(run, args.round, None, layer)
    text = text_of(model)
    if text is None:
        raise UsageError(f"{run}: its model does not read text, or has no tokenizer (data.args.tokenizer)")
    task: Any = replace(
        model.task,  # pyright: ignore[reportArgumentType]
        length=args.length,
        temperature=args.temperature or model.task.temperature,  # pyright: ignore[reportAttributeAccessIssue]
        seed=args.seed,
        end=text.end,
        decode=text.decode,
    )
    (answer,) = task.answers(model.predictor(), torch.tensor([text.encode(prompt) or [1]]))["text"]
    return answer
