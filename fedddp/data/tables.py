"""Tables of columns: ``data.name=csv`` and ``data.name=parquet``, read in batches by pyarrow.

Number columns are standardised by the training set's mean and standard deviation, text columns become one indicator for
each value that occurs in the training set. A column may name the owner of each row (``data.partition.name=natural``).
"""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..comm.world import Place
from ..errors import UsageError
from .columns import Roles, Rows, divided
from .datasets import Dataset, Examples
from .readers.split import Fraction, Seed, held_out

log = logging.getLogger("fedddp")

Side = Annotated[int, Field(ge=1, le=10**6)]


def table(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    file: str,
    target: str | tuple[str, ...],
    owner: str = "",
    columns: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    test_file: str = "",
    test_column: str = "",
    test_fraction: Fraction = 0.2,
    shape: tuple[Side, ...] = (),
    standardize: bool = True,
    missing: Literal["refuse", "mean"] = "refuse",
    seed: Seed = 0,
) -> Dataset:
    """Rows of a CSV or Parquet file below ``root``; inputs float32 [n, d], or [n, *shape].

    Args:
        root: the folder of the files.
        download: not used.
        targets: what the target column holds, see `TARGETS`.
        file: the file; its first line names the columns of a CSV file.
        target: the column to predict, or several: of real numbers, or of labels 0 and 1.
        owner: the column that says to whom a row belongs.
        columns, ignore: the input columns (by default all others), and which to leave out of these.
        test_file, test_column, test_fraction: the test set: a second file; a column that says "train" or "test", or 0
            or 1; else a fraction of the rows, drawn by ``seed``.
        shape: of an example, whose numbers are then taken as they are: as pixels if all are whole and from 0 to 255.
        standardize: subtract the training set's mean of each number column, and divide by its standard deviation.
        missing: whether a missing value is refused, or is the training set's mean (of text: no indicator).
        seed: see ``test_fraction``.

    Raises:
        UsageError: one line that names the column, or the file.
    """
    roles = Roles((target,) if isinstance(target, str) else target, owner, test_column, columns, ignore)
    rows, test = _read(root, file, roles, bool(shape), test_file, test_fraction, seed)
    x = rows.shaped(shape) if shape else rows.inputs(~test, standardize=standardize, missing=missing)
    owners = divided(rows.owners(owner), test) if owner else (None, None)
    y = divided(rows.target, test)
    said = rows.summary(x, standardize and not shape)
    del rows
    both = [
        Examples(torch.from_numpy(inputs), labels, None if who is None else torch.from_numpy(who))
        for inputs, labels, who in zip(divided(x, test), y, owners, strict=True)
    ]
    dataset = Dataset.of(both[0], both[1], targets=targets)
    if Place.from_env().rank == 0:
        log.info("%s: %s", file, said)
    return dataset


def inputs_like(new: Path, root: Path, args: Mapping[str, Any]) -> Tensor:
    """Return the inputs of another file's rows, as `table` makes them with ``args``; its own file is read again.

    The file needs the input columns, by their names; all others are ignored.

    Raises:
        UsageError: one line that names the column, or the file.
    """
    bound = inspect.signature(table).bind(root, False, **args)
    bound.apply_defaults()
    a = bound.arguments
    targets = (a["target"],) if isinstance(a["target"], str) else tuple(a["target"])
    roles = Roles(targets, a["owner"], a["test_column"], a["columns"], a["ignore"])
    rows, test = _read(root, a["file"], roles, bool(a["shape"]), a["test_file"], a["test_fraction"], a["seed"])
    both = rows.with_rows_of(new, bool(a["shape"]))
    train = np.concatenate([~test, np.zeros(len(both) - len(rows), bool)])
    fitted = {"standardize": a["standardize"], "missing": a["missing"]}
    x = both.shaped(a["shape"]) if a["shape"] else both.inputs(train, **fitted)
    return torch.from_numpy(x[len(rows) :])


def _read(
    root: Path, file: str, roles: Roles, shaped: bool, test_file: str, test_fraction: float, seed: int
) -> tuple[Rows, np.ndarray]:
    """Return the rows of both sets, and which are of the test set (bool). Raises UsageError."""
    if test_file and roles.split:
        raise UsageError("data.args.test_column: test_file is given too; give one of them", code="table-split")
    rows = Rows.read(root / file, roles, shaped)
    if test_file:
        trained = len(rows)
        rows = rows.joined(Rows.read(root / test_file, roles, shaped, rows))
        test = np.arange(len(rows)) >= trained
    else:
        test = rows.split if roles.split else held_out(len(rows), test_fraction, seed)
    for part, there in (("training", ~test), ("test", test)):
        if not there.any():
            raise UsageError(f"the {part} set has no row; choose another split", code="table-split")
    return rows, test
