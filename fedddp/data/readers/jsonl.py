"""Instructions and texts, one JSON object a line: ``data.name=jsonl``, read with a model's own tokenizer."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...comm.world import Place
from ...errors import UsageError
from ...registry.choice import read_file
from ..datasets import Dataset, Examples
from ..labels import listed
from ..targets import IGNORED
from .characters import Length
from .split import Fraction, Seed, held_out
from .tokens import Piece, Tokenizer, packed, pieces, rows

log = logging.getLogger("fedddp")

Line = tuple[list[Piece], Any]
"""What a line of the file becomes, and its owner."""


def jsonl(
    root: Path,
    download: bool,
    targets: str = "positions",
    *,
    file: str,
    tokenizer: str,
    test_file: str = "",
    prompt: str = "prompt",
    response: str = "response",
    text: str = "text",
    owner: str = "owner",
    length: Length = 256,
    pack: bool = False,
    test_fraction: Fraction = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """Prompts with responses, or texts, one JSON object a line, as tokens of a model's own tokenizer.

    Of a prompt with its response, only the tokens of the response and its end are predicted; both are read one behind
    the other, and cut at ``length``. A text is cut into rows of ``length`` tokens, all of which are predicted.

    Args:
        root: the folder of the files.
        download: not used.
        targets: not used: every position is predicted.
        file: the file below ``root``.
        tokenizer: a ``tokenizer.json``, or the folder of a model, below ``root``.
        test_file: another file with the test set; by default a part of ``file``.
        prompt, response, text, owner: the keys of an object. Without owners, leave the last out of all objects.
        length: tokens of a row.
        pack: whether short examples of one owner share a row, as many as fit; a token then attends to the examples
            before its own, too.
        test_fraction: of the objects, drawn by ``seed``; where there is no ``test_file``.
        seed: see ``test_fraction``.

    Raises:
        UsageError: one line that names the file and the line in it.
    """
    read = Tokenizer.read(tokenizer, root)
    columns = _Columns(read, prompt, response, text, owner, length)
    train = list(columns.lines(root / file))
    if test_file:
        test = list(columns.lines(root / test_file))
    else:
        chosen = held_out(len(train), test_fraction, seed)
        train, test = ([line for line, side in zip(train, chosen, strict=True) if side == wanted] for wanted in (0, 1))
    numbers = {name: i for i, name in enumerate(sorted({str(whose) for _, whose in (*train, *test)}))}
    both = [_examples(lines, length, pack, numbers) for lines in (train, test)]
    for part, examples in zip(("training", "test"), both, strict=True):
        empty = int((examples.y == IGNORED).all(dim=1).sum())
        if empty and Place.from_env().rank == 0:
            log.warning(
                "%d of %d %s examples have no token that is predicted: prompts of %d tokens or more; raise "
                "data.args.length",
                empty,
                len(examples),
                part,
                length,
            )
    return Dataset(both[0], both[1], read.vocabulary, (0.0,), (1.0,), "positions", read.vocabulary, decode=read.decode)


class _Columns:
    """How a line is read."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, response: str, text: str, owner: str, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._prompt, self._response, self._text, self._owner = prompt, response, text, owner
        self._owned: bool | None = None

    def lines(self, file: Path) -> Iterator[Line]:
        """Read a file line by line. Raises UsageError."""
        try:
            content = read_file(file).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not UTF-8"
            raise UsageError(
                f"data.args.file: {file} cannot be read ({reason}); name a file below data.root", code="jsonl-file"
            ) from None
        number = 0
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield self._line(line, f"{file}, line {number}")
        if not content.strip():
            raise UsageError(f"data.args.file: {file} is empty; it has a JSON object in each line", code="jsonl-file")

    def _line(self, line: str, where: str) -> Line:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: is no JSON object; write one a line", code="jsonl-line")
        key = self._response if self._response in row else self._text
        said, asked = row.get(key), row.get(self._prompt, "")
        if not isinstance(said, str) or not isinstance(asked, str):
            raise UsageError(
                f"{where}: has the keys {listed(map(repr, row))}; expected texts {self._prompt!r} and "
                f"{self._response!r}, or {self._text!r} (data.args.prompt, response and text name others)",
                code="jsonl-line",
            )
        if self._owned not in (None, self._owner in row):
            raise UsageError(
                f"{where}: some objects have the key {self._owner!r} and some have not; give all an owner, or none "
                "(data.args.owner)",
                code="jsonl-owner",
            )
        self._owned = self._owner in row
        return list(self._pieces(asked, said, key == self._text)), row.get(self._owner)

    def _pieces(self, asked: str, said: str, plain: bool) -> Iterator[Piece]:
        """The tokens of one example, in rows' lengths."""
        end = [] if self._tokenizer.end is None else [self._tokenizer.end]
        spoken = [*self._tokenizer.encode(said), *end]
        if plain:
            yield from pieces(spoken, self._length)
        else:
            before = self._tokenizer.encode(asked)
            counted = [False] * len(before) + [True] * len(spoken)
            yield [*before, *spoken][: self._length + 1], [False, *counted[1 : self._length + 1]]


def _examples(lines: list[Line], length: int, pack: bool, numbers: dict[str, int]) -> Examples:
    """Rows of what each owner has, with owners by their ``numbers``; without, where no line has one."""
    of_owner = defaultdict[int, list[Piece]](list)
    for parts, whose in lines:
        of_owner[numbers[str(whose)]] += parts
    if pack:
        of_owner = {whose: list(packed(parts, length)) for whose, parts in of_owner.items()}
    x, y = rows([piece for parts in of_owner.values() for piece in parts], length)
    owners = np.repeat(np.array(list(of_owner), np.int64), [len(parts) for parts in of_owner.values()])
    owned = set(numbers) != {"None"}
    owned = set(numbers) != {"None"}
    return Examples(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(owners) if owned else None)
