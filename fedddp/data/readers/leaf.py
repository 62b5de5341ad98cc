"""LEAF's layout (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018): ``data.name=leaf``.

``train/*.json`` and ``test/*.json`` hold ``users`` and, for each, ``user_data[user] = {"x": [...], "y": [...]}``. The
files are read one after the other; owners are the users.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ...errors import UsageError, first_line, reason
from ...registry.choice import read_file
from ..datasets import Dataset, Examples
from ..inputs import check_memory
from ..targets import IGNORED
from .characters import ALPHABET, PADDING, VOCABULARY, Length, padded

Side = Annotated[int, Field(ge=1, le=10**6)]


def leaf(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    shape: tuple[Side, ...] = (),
    column: Annotated[int, Field(ge=0, le=10_000)] = 4,
    length: Length = 80,
) -> Dataset:
    """FEMNIST, Shakespeare, Sent140 and whatever else LEAF's scripts write below ``root`` (Caldas et al. 2018).

    Inputs are numbers (FEMNIST), text (Shakespeare: 80 characters, of which the target is the next one), or rows with a
    text (Sent140). Text becomes its characters, cut or padded to ``length``; with targets at each position, the target
    of a character is the one behind it.

    Args:
        root: the folder of ``train`` and ``test``.
        download: not used.
        targets: what a target is, see `TARGETS`.
        shape: of an example, such as [1, 28, 28] of FEMNIST; by default as the files have it.
        column: which column of a row is its text.
        length: characters of an example of text.

    Raises:
        UsageError: one line that names the file.
    """
    users: dict[str, int] = {}
    form = _Form(shape, column, length, targets == "positions")
    train, test = (_examples(root / part, users, form) for part in ("train", "test"))
    if train.x.dtype != torch.int64:
        return Dataset.of(train, test, targets=targets)
    count = VOCABULARY if form.next else None
    return replace(Dataset.of(train, test, count, targets), vocabulary=VOCABULARY, alphabet=ALPHABET)


@dataclass(frozen=True)
class _Form:
    """How an example is read; ``next``: whether the next character is the target at each position."""

    shape: tuple[int, ...]
    column: int
    length: int
    next: bool

    def inputs(self, x: Sequence[Any], y: Sequence[Any]) -> tuple[NDArray[Any], Any]:
        """Inputs and targets of one user. Raises ValueError."""
        if isinstance(x[0], list) and any(isinstance(value, str) for value in x[0]):
            x = [row[self.column] for row in x]
        if not all(isinstance(value, str) for value in x):
            numbers = np.asarray(x, np.float32)
            return numbers.reshape(len(x), *self.shape) if self.shape else numbers, y
        check_memory(8 * len(x) * self.length, f"{len(x)} texts of {self.length}", "set a smaller data.args.length")
        tokens = np.stack([padded(text, self.length) for text in x])
        if not self.next:
            return tokens, y
        following = np.stack([padded(text[1:] + after, self.length) for text, after in zip(x, y, strict=True)])
        return tokens, np.where(tokens == PADDING, IGNORED, following)


def _examples(folder: Path, users: dict[str, int], form: _Form) -> Examples:
    """All examples of the files in ``folder``, file after file; ``users`` grows by the new ones. Raises UsageError."""
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]] = []
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(read_file(file))
            for user in content["users"]:
                said = content["user_data"][user]
                if said["x"]:
                    x, y = form.inputs(said["x"], said["y"])
                    parts.append((x, np.asarray(y), np.full(len(x), users.setdefault(user, len(users)))))
        except UsageError:
            raise
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError, AttributeError) as error:
            raise UsageError(
                f"{file}: is no file of LEAF that can be read ({reason(error)}); it has users, and user_data with "
                "x and y of each",
                code="leaf-file",
            ) from None
    if not parts:
        raise UsageError(
            f"data.root: {folder} has no *.json with examples; LEAF's scripts write train and test", code="leaf-folder"
        )
    try:
        x, y, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
    except ValueError as error:
        raise UsageError(f"{folder}: inputs differ in shape ({first_line(error)})", code="inputs-shapes") from None
    return Examples(torch.from_numpy(x), cast(Any, y), torch.from_numpy(owner))
