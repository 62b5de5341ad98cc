"""Number the classes of labels 0 to C - 1, or explain why that is impossible; every label passes here first.

A label is converted only if nothing is lost. Whole numbers from 0 stay as they are, whatever their type (bool, float
that is whole, [n, 1]). Text, -1/+1, one-hot rows, numbers that start elsewhere and numbers with large gaps get numbers
in sorted order, which `Numbered.remarks` says.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OWN_CODE, UsageError, raised

EXACT = 2**53  # float64 holds every whole number up to here
LONGEST = 1000  # characters of a class's name; an array of text takes the longest's size for each example


@dataclass(frozen=True)
class Numbered:
    """The labels of both sets as int64 in 0 to ``num_classes`` - 1, and what a user has to know about them.

    ``names``: what the classes were called, where they have other names than their numbers.
    """

    train: Tensor
    test: Tensor
    num_classes: int
    remarks: tuple[str, ...]
    names: tuple[str, ...] = ()


def numbered(train: Any, test: Any, num_classes: int | None = None) -> Numbered:
    """Number the classes of labels of any type alike in both sets.

    Args:
        train: One label an example of the training set: numbers, text, or one-hot rows [n, C].
        test: The same of the test set.
        num_classes: How many classes there are; numbers then stay what they are, and gaps too.

    Raises:
        ValueError: One line that says what was seen and what to do.
    """
    (a, a_hot), (b, b_hot) = _one_each(train, "training"), _one_each(test, "test")
    if a.dtype.kind != b.dtype.kind or a_hot != b_hot:
        raise UsageError(
            f"the training labels are {_form(a, a_hot)}, the test labels {_form(b, b_hot)}; give both in one form",
            code="labels-sets-differ",
        )
    seen = np.unique(a)
    classes = np.union1d(seen, np.unique(b))
    if not np.isin(b, seen).any():
        raise UsageError(
            f"no label of the test set ({listed(np.unique(b))}) occurs in the training set ({listed(seen)}); "
            "label both alike",
            code="labels-disjoint",
        )
    if len(seen) == 1 and num_classes is None:
        raise UsageError(
            f"every training label is {seen[0]}: there is nothing to classify; give two or more classes",
            code="labels-single",
        )
    remarks = []
    if a_hot:
        num_classes = num_classes or a_hot
        remarks.append(f"labels are one-hot rows of {a_hot}, taken as the classes 0 to {a_hot - 1}")
    unknown = classes[~np.isin(classes, seen)]
    if len(unknown):
        met = f"{np.isin(b, unknown).sum()} of {len(b)} test examples have a label that no training example has"
        if num_classes is None:
            raise UsageError(
                f"{met} ({listed(unknown)}): it cannot be learned; divide the examples otherwise, or take these out",
                code="labels-test-only",
            )
        remarks.append(f"{met} ({listed(unknown)}): it cannot be learned")
    text = a.dtype.kind == "U"
    if not text and (num_classes is not None or _count_from_zero(classes)):
        count = num_classes or int(classes[-1]) + 1
        _refuse_outside(a, b, count)
        if num_classes is None and len(classes) < count:
            missing = np.setdiff1d(np.arange(count), classes)
            remarks.append(f"labels are 0 to {count - 1}, of which no example has {listed(missing)}")
        return Numbered(torch.from_numpy(a), torch.from_numpy(b), count, tuple(remarks))
    if not text:
        _refuse_unclear(classes, len(a) + len(b))
    if num_classes is not None and len(classes) > num_classes:
        raise UsageError(
            f"num_classes={num_classes}: there are {len(classes)} different labels ({listed(classes)})",
            code="num-classes",
        )
    remarks.append(f"labels are {listed(classes)}, numbered in this order as the classes 0 to {len(classes) - 1}")
    a, b = (torch.from_numpy(np.searchsorted(classes, part).astype(np.int64)) for part in (a, b))
    return Numbered(a, b, num_classes or len(classes), tuple(remarks), tuple(map(str, classes)))


def numbers(values: Any, what: str) -> Tensor:
    """One whole number an example, int64 [n], of numbers or of text (then counted in sorted order).

    ``what`` they are, for the ValueError's line where they are anything else.
    """
    column = _column(array_of(values, what), what)
    whole = np.unique(column, return_inverse=True)[1] if column.dtype.kind == "U" else _whole(column, what)
    return torch.from_numpy(whole.astype(np.int64))


def listed(values: Iterable[Any], most: int = 6) -> str:
    """The values with commas between; of many, the first and the last."""
    words = [str(v) for v in values]
    return ", ".join(words if len(words) <= most else [*words[: most - 1], "...", words[-1]])


def _one_each(values: Any, part: str) -> tuple[NDArray[Any], int]:
    """Labels [n], int64 or text, and how many columns they had if they were one-hot, else 0."""
    what = f"{part} labels"
    array = array_of(values, what)
    if not len(array):
        raise UsageError(f"the {part} set has no examples", code="dataset-empty")
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise UsageError(
                f"the {what} are {list(array.shape)} and not one-hot; this is classification with one label an example",
                code="labels-form",
            )
        return array.argmax(axis=1).astype(np.int64), array.shape[1]
    column = _column(array, what)
    return (column if column.dtype.kind == "U" else _whole(column, what)), 0


def array_of(values: Any, what: str) -> NDArray[Any]:
    """Values of any kind as an array [n, ...] of numbers or text. A list that mixes the two would become text."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise UsageError(
            f"{what}: {np.ma.count_masked(values)} are masked; take these examples out", code="labels-missing"
        )
    try:
        array = _read(values, what)
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} are bytes that are not UTF-8 ({error.reason}); decode them to text", code="labels-text"
        ) from None
    if array.ndim == 0 or array.dtype.kind not in "biufU":
        shown = array.tolist()[0] if array.ndim and len(array) else array.tolist()
        raise UsageError(
            f"{what} are {array.dtype} ({shown!r}); give whole numbers or text, one an example", code="labels-type"
        )
    return array


def _read(values: Any, what: str) -> NDArray[Any]:
    """The values as numpy has them, of any type. Raises ValueError."""
    try:
        array = np.asarray(_on_cpu(values)) if hasattr(values, "__array__") else None
        if array is None or array.dtype.kind in "OT":
            sized = hasattr(values, "__len__") and not isinstance(values, str | Mapping | Set)
            if not sized or (array is not None and not array.ndim):
                raise UsageError(
                    f"{what} are {_shown(values)}; give a list or an array, one label an example", code="labels-type"
                )
            values = [_on_cpu(v) for v in (values if array is None else array.tolist())]
    except UsageError:
        raise
    except OWN_CODE as error:
        raise UsageError(
            f"{what} cannot be read ({raised(error)}); give a list or an array of numbers or text",
            code="dataset-raises",
        ) from error
    if array is not None and array.dtype.kind not in "OT":
        return array
    odd = _odd_one(values)
    if odd is not None:
        raise UsageError(
            f"{what} are of several kinds: that of example {odd} is {_shown(values[odd])}; use one kind",
            code="labels-mixed",
        )
    for i, value in enumerate(values):
        if isinstance(value, str | bytes) and (len(value) > LONGEST or value[-1:] in ("\0", b"\0")):
            raise UsageError(
                f"{what}: that of example {i} is {_shown(value)}, which names no class: give up to {LONGEST} "
                "characters, without NUL",
                code="labels-text",
            )
    try:
        return np.asarray(values) if values else np.zeros(0, np.int64)
    except ValueError:
        raise UsageError(f"{what} differ in shape; give one an example", code="labels-form") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _on_cpu(values: Any) -> Any:
    """A tensor as an array; numpy has no bfloat16."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def _odd_one(values: list[Any]) -> int | None:
    """The first value that is text where the first one is not, or the other way round, or that is None."""
    text = bool(values) and isinstance(values[0], str | bytes)
    return next((i for i, v in enumerate(values) if v is None or isinstance(v, str | bytes) != text), None)


def _column(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise UsageError(f"{what} are {list(array.shape)}; give one an example, [{len(array)}]", code="labels-form")
    return array


def _whole(column: NDArray[Any], what: str) -> NDArray[np.int64]:
    """The same numbers as int64, if they are whole and fit."""
    if column.dtype.kind == "f":
        column = column.astype(np.result_type(column, np.float64))
        bad = ~np.isfinite(column)
        if bad.any():
            raise UsageError(
                f"{bad.sum()} of {len(column)} {what} are NaN or infinite, first that of example {bad.argmax()}; "
                "take these examples out",
                code="labels-not-finite",
            )
        bad = (column != np.rint(column)) | (np.abs(column) >= EXACT)
        if bad.any():
            raise UsageError(
                f"{what}: targets are not whole numbers (that of example {bad.argmax()} is {column[bad.argmax()]:g}); "
                "set task.name=regression to learn numbers, or give the number or the name of a class",
                code="labels-not-whole",
            )
    if column.dtype.kind == "u" and len(column) and column.max() > np.iinfo(np.int64).max:
        raise UsageError(
            f"{what}: {column.max()} does not fit into int64; number the classes from 0", code="labels-range"
        )
    return np.require(column, np.int64, ["W"])  # a copy only if it has to be


def _count_from_zero(classes: NDArray[Any]) -> bool:
    """Whether these are numbers of classes as they are: from 0, and at least every second number occurs."""
    return classes[0] == 0 and classes[-1] < 2 * len(classes)


def _refuse_unclear(classes: NDArray[Any], examples: int) -> None:
    """Raise ValueError for numbers that may not be classes at all."""
    if classes[0] < 0 and classes.tolist() != [-1, 1]:
        raise UsageError(
            f"labels are {listed(classes)}: negative ones often mean that there is no label; take these examples out, "
            "or number the classes from 0",
            code="labels-negative",
        )
    if classes[-1] - classes[0] >= 2 * len(classes) and 2 * len(classes) > examples:
        raise UsageError(
            f"labels are {listed(classes)}, {len(classes)} different ones among {examples} examples: these are "
            "measurements or identifiers; this is classification: give the number or the name of a class",
            code="labels-measurements",
        )


def _refuse_outside(train: NDArray[Any], test: NDArray[Any], num_classes: int) -> None:
    for part, labels in (("training", train), ("test", test)):
        outside = (labels < 0) | (labels >= num_classes)
        if outside.any():
            first = int(outside.argmax())
            raise UsageError(
                f"label {labels[first]} of {part} example {first} is outside 0 to {num_classes - 1}: there are "
                f"{num_classes} classes",
                code="labels-outside",
            )


def _form(labels: NDArray[Any], hot: int) -> str:
    return f"one-hot rows of {hot}" if hot else "text" if labels.dtype.kind == "U" else "whole numbers"
