"""Text as characters: a fixed vocabulary, and each owner's text as windows of which every next character is predicted.

Token 0 is padding, 1 the end of a line, 2 to 96 the printable characters of ASCII. Any other character is read as "?".
"""

import logging
import re
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from ...comm.world import Place
from ...errors import UsageError
from ..datasets import Dataset, Examples
from ..targets import IGNORED
from .tokens import PADDING, Tokenizer

log = logging.getLogger("fedddp")

Length = Annotated[int, Field(ge=1, le=100_000)]
"""Characters, or tokens, of an example."""
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = 1 + len(ALPHABET)
TOKENS = np.full(256, 1 + ALPHABET.index("?"), np.int64)
TOKENS[[ord(c) for c in ALPHABET]] = np.arange(1, VOCABULARY)
STRANGE = re.compile(r"[^\n -~]")


def encode(text: str) -> np.ndarray:
    """Return the token of each character, int64 [n]."""
    return TOKENS[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]  # a byte each, "?" beyond latin-1


def padded(text: str, length: int) -> np.ndarray:
    """Return the tokens of the first ``length`` characters, and padding behind a shorter text, int64 [length]."""
    tokens = np.full(length, PADDING)
    tokens[: len(text)] = encode(text[:length])
    return tokens


def windows(text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of ``text`` one after the other, and the character that follows each of theirs.

    x[i, j] = text[i length + j] and y[i, j] = text[i length + j + 1], tokens. What the last window has no characters
    for is padding in x and `IGNORED` in y.

    Args:
        text: the text of one owner.
        length: characters of a window.

    Returns:
        x and y, int64 [ceil((n - 1) / length), length] for n characters.
    """
    tokens = encode(text)
    count = -(-max(len(tokens) - 1, 0) // length)
    x, y = np.full(count * length, PADDING), np.full(count * length, IGNORED)
    x[: len(tokens) - 1], y[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    return x.reshape(count, length), y.reshape(count, length)


def by_owner(
    texts: Mapping[str, str],
    *,
    length: int,
    test_fraction: float,
    min_characters: int,
    max_characters: int | None = None,
    most: int | None = None,
    tokenizer: Tokenizer | None = None,
    what: str = "owners",
) -> Dataset:
    """Return windows of each owner's text; the last part of every text is the test set.

    Args:
        texts: the text of each owner; owners are numbered in sorted order of their names.
        length: characters, or tokens, of a window.
        test_fraction: of the characters of every text.
        min_characters: an owner with fewer is left out, which a line says.
        max_characters: of a longer text, the beginning is taken.
        most: take so many owners, those with the longest texts.
        tokenizer: makes tokens of a text; by default they are its characters.
        what: what an owner is, for messages.

    Raises:
        UsageError: no owner is left.
    """
    longest = sorted(texts, key=lambda name: (-len(texts[name]), name))[:most]
    kept = [texts[name][:max_characters] for name in sorted(longest) if len(texts[name]) >= min_characters]
    if len(kept) < 2:
        raise UsageError(
            f"data.args.min_characters={min_characters}: {len(kept)} of {len(texts)} {what} have so many; lower it",
            code="text-short",
        )
    cut = [len(text) - round(test_fraction * len(text)) for text in kept]
    train = _examples([text[:n] for text, n in zip(kept, cut, strict=True)], length, tokenizer)
    test = _examples([text[n:] for text, n in zip(kept, cut, strict=True)], length, tokenizer)
    if Place.from_env().rank == 0:
        total, left = sum(map(len, kept)), len(texts) - len(kept)
        log.info(
            "%d %s, %d characters; %d with fewer than %d are left out", len(kept), what, total, left, min_characters
        )
        if tokenizer is None and (unknown := sum(len(STRANGE.findall(text)) for text in kept)):
            log.warning("%d characters that are not ASCII are read as '?'", unknown)
    if tokenizer is not None:
        size = tokenizer.vocabulary
        return Dataset(train, test, size, (0.0,), (1.0,), "positions", size, decode=tokenizer.decode)
    return Dataset(train, test, VOCABULARY, (0.0,), (1.0,), "positions", VOCABULARY, alphabet=ALPHABET)


def _examples(texts: list[str], length: int, tokenizer: Tokenizer | None) -> Examples:
    read = (lambda text: windows(text, length)) if tokenizer is None else tokenizer.windows(length)
    parts = [read(text) for text in texts]
    x, y = (torch.from_numpy(np.concatenate(columns)) for columns in zip(*parts, strict=True))
    owners = np.repeat(np.arange(len(parts)), [len(x) for x, _ in parts])
    return Examples(x, y, torch.from_numpy(owners))
