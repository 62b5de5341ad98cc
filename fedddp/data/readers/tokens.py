"""Text as the tokens of a tokenizer, and sequences of tokens as rows of which every next token is predicted."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import OWN_CODE, UsageError, first_line
from ...registry.choice import user_path
from ..inputs import check_memory
from ..targets import IGNORED

PADDING = 0
Piece = tuple[Sequence[int], Sequence[bool]]
"""Tokens of one example, and for each whether it is predicted from those before."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the library `tokenizers`; its token 0 is taken for padding.

    Attributes:
        library: the tokenizer.
        vocabulary: number of token ids, those that only the model has included.
        end: the token that ends a text; None where that is not known.
    """

    library: Any
    vocabulary: int
    end: int | None

    @classmethod
    def read(cls, path: str, root: Path) -> Self:
        """Read a ``tokenizer.json``, or that of a model's folder, below ``root``. Raises UsageError."""
        file = root / user_path(path)
        folder, file = (file, file / "tokenizer.json") if file.is_dir() else (file.parent, file)
        try:
            tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(file))
        except ImportError:
            raise UsageError("needs tokenizers; install it with pip install 'fedddp[hf]'", code="hf-library") from None
        except OWN_CODE as error:
            raise UsageError(
                f"data.args.tokenizer: {file} cannot be read ({first_line(error)}); name a tokenizer.json, or the "
                "folder of a model that has one, below data.root",
                code="hf-tokenizer",
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        end, known = _entry(folder / "tokenizer_config.json", "eos_token"), _entry(folder / "config.json", "vocab_size")
        end = end.get("content") if isinstance(end, dict) else end
        known = max(tokenizer.get_vocab_size(), known if isinstance(known, int) else 0)
        return cls(tokenizer, known, tokenizer.token_to_id(end) if isinstance(end, str) and end else None)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of ``text``; with ``special``, those that its model puts around a text, too."""
        return self.library.encode(text, add_special_tokens=special).ids

    def windows(self, length: int) -> Callable[[str], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the function from a text to its rows of ``length`` tokens, one after the other, and their targets."""
        return lambda text: rows(list(pieces(self.encode(text), length)), length)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ``tokens``, without padding."""
        return self.library.decode([token for token in tokens if token != PADDING])


def _entry(file: Path, key: str) -> Any:
    """A value of a JSON file beside a tokenizer; None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def pieces(tokens: Sequence[int], length: int) -> Iterator[Piece]:
    """Cut a text into pieces of ``length`` + 1 tokens, of which the first is the last of the piece before."""
    for first in range(0, max(1, len(tokens) - 1), length):
        piece = tokens[first : first + length + 1]
        yield piece, [False] + [True] * (len(piece) - 1)


def packed(parts: Iterable[Piece], length: int) -> Iterator[Piece]:
    """Join consecutive ``parts`` as long as they have at most ``length`` + 1 tokens together."""
    tokens, counted = list[int](), list[bool]()
    for piece, counts in parts:
        if tokens and len(tokens) + len(piece) > length + 1:
            yield tokens, counted
            tokens, counted = [], []
        tokens, counted = [*tokens, *piece], [*counted, *counts]
    if tokens:
        yield tokens, counted


def rows(parts: Sequence[Piece], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inputs and targets of ``parts``, int64 [n, length].

    The target of a token is the next one, if that is predicted, else `IGNORED`. Behind a short piece there is padding.
    """
    check_memory(16 * len(parts) * length, f"{len(parts)} rows of {length} tokens", "set a smaller data.args.length")
    x, y = np.full((len(parts), length), PADDING, np.int64), np.full((len(parts), length), IGNORED, np.int64)
    for i, (piece, counts) in enumerate(parts):
        tokens = np.asarray(piece[: length + 1], np.int64)
        n = len(tokens) - 1
        x[i, :n] = tokens[:-1]
        y[i, :n] = np.where(counts[1 : n + 1], tokens[1:], IGNORED)
    return x, y
