"""Kinds of targets: a class, real numbers, several labels, or a class at each position; read and checked alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .labels import Numbered, array_of, numbered

IGNORED = -100
"""The target of a position at which nothing is predicted, such as padding; that of `torch.nn.CrossEntropyLoss`."""


@dataclass(frozen=True)
class TargetKind:
    """A kind of targets.

    Attributes:
        words: what an example's target is, for messages.
        read: from the targets of both sets, of any type, and the number of outputs if it is known.
        fits: whether a tensor ``y`` with ``n`` outputs is of this kind.
        blank: the target of one example with ``n`` outputs and an input of a shape.
    """

    words: str
    read: Callable[[Any, Any, int | None], Numbered]
    fits: Callable[[Tensor, int], bool]
    blank: Callable[[int, Sequence[int]], Tensor]


def _real(train: Any, test: Any, count: int | None) -> Numbered:
    a, b = (_columns(values, part) for values, part in ((train, "training"), (test, "test")))
    for part, y in (("training", a), ("test", b)):
        bad = ~np.isfinite(y).all(axis=1)
        if bad.any():
            raise UsageError(
                f"{int(bad.sum())} of {len(y)} {part} targets are NaN or infinite, first example {int(bad.argmax())}; "
                "take these examples out",
                code="targets-not-finite",
            )
    return _both(a, b, count, "numbers")


def _labels(train: Any, test: Any, count: int | None) -> Numbered:
    a, b = (_columns(values, part) for values, part in ((train, "training"), (test, "test")))
    for part, y in (("training", a), ("test", b)):
        if y.shape[1] < 2 or not np.isin(y, (0, 1)).all():
            raise UsageError(
                f"the {part} targets are {list(y.shape)}, {y.min():g} to {y.max():g}; several labels an example are "
                "rows [n, L] of 0 and 1 with L of at least 2",
                code="targets-labels",
            )
    return _both(a.astype(np.uint8), b.astype(np.uint8), count, "labels")


def _positions(train: Any, test: Any, count: int | None) -> Numbered:
    a, b = (array_of(values, f"{part} targets") for values, part in ((train, "training"), (test, "test")))
    for part, y in (("training", a), ("test", b)):
        if y.ndim != 2 or y.dtype.kind not in "iu" or not (y != IGNORED).any() or (y[y != IGNORED] < 0).any():
            raise UsageError(
                f"the {part} targets are {y.dtype} {list(y.shape)}; a class at each position is whole numbers [n, T] "
                f"from 0, or {IGNORED} where nothing is predicted",
                code="targets-positions",
            )
    largest = int(max(a.max(), b.max()))
    if count is not None and largest >= count:
        raise UsageError(
            f"target {largest} is outside 0 to {count - 1}: there are {count} classes", code="labels-outside"
        )
    a, b = a.astype(np.int64), b.astype(np.int64)
    return Numbered(torch.from_numpy(a), torch.from_numpy(b), count or largest + 1, ())


def _columns(values: Any, part: str) -> np.ndarray:
    """Numbers [n] or [n, d] as [n, d]. Raises UsageError."""
    y = array_of(values, f"{part} targets")
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2):
        raise UsageError(
            f"the {part} targets are {y.dtype} {list(y.shape)}; expected numbers [n] or [n, d]", code="targets-numbers"
        )
    return y.astype(np.float32 if y.dtype == np.float32 else np.float64).reshape(len(y), -1)


def _both(a: np.ndarray, b: np.ndarray, count: int | None, what: str) -> Numbered:
    if a.shape[1] != b.shape[1] or count not in (None, a.shape[1]):
        raise UsageError(
            f"the training targets have {a.shape[1]} {what}, the test targets {b.shape[1]}"
            + ("" if count is None else f", num_classes is {count}")
            + "; give both alike",
            code="labels-sets-differ",
        )
    return Numbered(torch.from_numpy(a), torch.from_numpy(b), a.shape[1], ())


def _between(y: Tensor, low: int, count: int) -> bool:
    return y.numel() > 0 and low <= int(y.min()) <= int(y.max()) < count


TARGETS: dict[str, TargetKind] = {
    "class": TargetKind(
        "a class, int64 [n]",
        numbered,
        lambda y, n: y.dtype == torch.int64 and y.dim() == 1 and _between(y, 0, n),
        lambda n, shape: torch.zeros(1, dtype=torch.int64),
    ),
    "real": TargetKind(
        "real numbers, floating point [n, d]",
        _real,
        lambda y, n: y.is_floating_point() and y.dim() == 2 and y.shape[1] == n and bool(y.isfinite().all()),
        lambda n, shape: torch.zeros(1, n),
    ),
    "labels": TargetKind(
        "several labels, uint8 [n, L] of 0 and 1",
        _labels,
        lambda y, n: y.dtype == torch.uint8 and y.dim() == 2 and y.shape[1] == n and _between(y, 0, 2),
        lambda n, shape: torch.zeros(1, n, dtype=torch.uint8),
    ),
    "positions": TargetKind(
        f"a class at each position, int64 [n, T] (or {IGNORED})",
        _positions,
        lambda y, n: y.dtype == torch.int64 and y.dim() == 2 and _between(y[y != IGNORED], 0, n),
        lambda n, shape: torch.zeros(1, shape[0], dtype=torch.int64),
    ),
}
"""Kinds of targets by name; see `Dataset.targets`."""
