"""Tables of columns: ``data.name=csv`` and ``data.name=parquet``, read in batches by pyarrow.

Number columns are standardised by the training set's mean and standard deviation, text columns become one indicator for
each value that occurs in the training set. A column may name the owner of each row (``data.partition.name=natural``).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from ..comm.world import Place
from ..errors import UsageError, first_line
from ..rng import numpy_generator
from .datasets import Dataset, Examples
from .labels import listed

log = logging.getLogger("fedddp")

Side = Annotated[int, Field(ge=1, le=10**6)]
TEST_WORDS = {"test": True, "train": False, "true": True, "false": False, "1": True, "0": False}
MOST_VALUES = 1000
"""Different values of a text column that become indicators; more of them are hardly categories."""


def table(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    file: str,
    target: str,
    owner: str = "",
    columns: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    test_file: str = "",
    test_column: str = "",
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    shape: tuple[Side, ...] = (),
    standardize: bool = True,
    missing: Literal["refuse", "mean"] = "refuse",
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Dataset:
    """Rows of a CSV or Parquet file below ``root``; inputs float32 [n, d], or [n, *shape].

    Args:
        root: the folder of the files.
        download: not used.
        targets: what the target column holds: a class, or a real number.
        file: the file; its first line names the columns of a CSV file.
        target: the column to predict.
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
    if test_file and test_column:
        raise UsageError("data.args.test_column: test_file is given too; give one of them", code="table-split")
    roles = _Roles(target, owner, test_column, columns, ignore)
    rows = _Rows.read(root / file, roles, bool(shape))
    if test_file:
        trained = len(rows)
        rows = rows.joined(_Rows.read(root / test_file, roles, bool(shape), rows))
        chosen = np.arange(len(rows)) >= trained
    elif test_column:
        chosen = rows.split
    else:
        chosen = numpy_generator(seed, "table").random(len(rows)) < test_fraction
    for part, rest in (("training", ~chosen), ("test", chosen)):
        if not rest.any():
            raise UsageError(f"the {part} set has no row; choose another split", code="table-split")
    x = rows.shaped(shape) if shape else rows.inputs(~chosen, standardize=standardize, missing=missing)
    owners, y = rows.owners(owner) if owner else None, rows.target
    del rows
    parts = [
        Examples(torch.from_numpy(x[part]), y[part], None if owners is None else torch.from_numpy(owners[part]))
        for part in (~chosen, chosen)
    ]
    del x
    return Dataset.of(parts[0], parts[1], targets=targets)


@dataclass(frozen=True)
class _Roles:
    """What the columns of a table are for."""

    target: str
    owner: str
    split: str
    columns: Sequence[str]
    ignore: Sequence[str]

    def inputs(self, names: Sequence[str]) -> list[str]:
        """Return the input columns of a file with columns ``names``. Raises UsageError."""
        for key, wanted in (
            ("target", [self.target]),
            ("owner", [self.owner] if self.owner else []),
            ("test_column", [self.split] if self.split else []),
            ("columns", self.columns),
            ("ignore", self.ignore),
        ):
            for name in wanted:
                if names.count(name) != 1:
                    found = (
                        "occurs more than once"
                        if name in names
                        else f"does not exist; there are {listed(map(repr, names))}"
                    )
                    raise UsageError(f"data.args.{key}={name!r}: this column {found}", code="table-column")
        apart = {self.target, self.owner, self.split, *self.ignore}
        inputs = [name for name in self.columns or names if name not in apart]
        if not inputs:
            raise UsageError("no column is left to predict from; change data.args.columns", code="table-column")
        return inputs


@dataclass
class _Rows:
    """The rows of a table: numbers [n, numeric], codes of text [n, text] into ``values``; the other columns [n]."""

    file: Path
    numeric: list[str]
    numbers: np.ndarray
    text: list[str]
    codes: np.ndarray
    values: dict[str, dict[str, int]]
    target: Any
    """Numbers or text [n], which `Dataset.of` turns into classes."""
    owner: np.ndarray
    split: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def read(cls, file: Path, roles: _Roles, shaped: bool, like: "_Rows | None" = None) -> "_Rows":
        """Read ``file``, in batches; text gets the codes that it has in ``like``. Raises UsageError."""
        import pyarrow as pa

        numeric, text, values = [], [], dict(like.values) if like else {}
        parts: dict[str, list[np.ndarray]] = {"numbers": [], "codes": [], "target": [], "owner": [], "split": []}
        try:
            for batch in _batches(file):
                before = sum(map(len, parts["target"]))
                if not parts["target"]:
                    inputs = roles.inputs(batch.schema.names)
                    text = [n for n in inputs if _is_text(batch.schema.field(n).type)]
                    numeric = [n for n in inputs if n not in text]
                    _check_numbers(batch.schema, numeric)
                parts["numbers"].append(_numbers([batch.column(n) for n in numeric], batch.num_rows, shaped))
                codes = [_codes(batch.column(n), values.setdefault(n, {}), n) for n in text]
                parts["codes"].append(np.array(codes, np.int32).reshape(len(text), batch.num_rows).T)
                parts["target"].append(_plain(batch, roles.target, before))
                if roles.owner:
                    parts["owner"].append(_plain(batch, roles.owner, before))
                if roles.split:
                    parts["split"].append(_is_test(_plain(batch, roles.split, before), roles.split))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{file}: cannot be read ({first_line(error)})", code="table-file") from None
        if not parts["target"]:
            raise UsageError(f"{file}: has no row", code="table-file")
        one = {name: _joined(parts.pop(name)) for name in list(parts)}
        return cls(file, numeric, one["numbers"], text, one["codes"], values, one["target"], one["owner"], one["split"])

    def joined(self, other: "_Rows") -> "_Rows":
        """Return these rows with those of ``other`` behind them. Raises UsageError where columns differ."""
        if (self.numeric, self.text) != (other.numeric, other.text):
            raise UsageError(
                f"{other.file}: its columns, or their types, are not those of {self.file}; write both alike",
                code="table-columns-differ",
            )
        both = {
            name: _joined([getattr(self, name), getattr(other, name)])
            for name in ("numbers", "codes", "target", "owner", "split")
        }
        return _Rows(self.file, self.numeric, text=self.text, values=other.values, **both)

    def shaped(self, shape: Sequence[int]) -> np.ndarray:
        """Return the numbers as examples of ``shape``, uint8 or float32. Raises UsageError."""
        if self.text:
            raise UsageError(f"data.args.shape: column {self.text[0]!r} holds text; leave it out", code="table-shape")
        if len(self.numeric) != np.prod(shape):
            raise UsageError(
                f"data.args.shape={list(shape)}: has {np.prod(shape)} numbers, the table {len(self.numeric)} input "
                "columns; change one of them",
                code="table-shape",
            )
        _check_finite(self, "refuse")
        return self.numbers.reshape(len(self), *shape)

    def inputs(self, train: np.ndarray, *, standardize: bool, missing: str) -> np.ndarray:
        """Return the inputs [n, d]: numbers, then indicators of text; what is fitted is fitted on ``train`` (bool)."""
        _check_finite(self, missing)
        x = self.numbers
        for i in range(x.shape[1]):  # column by column: no second copy of the table
            column = x[:, i]
            known = column[train].astype(np.float64)
            mean, std = float(np.nanmean(known)), float(np.nanstd(known))
            column[np.isnan(column)] = mean
            if standardize:
                column -= mean
                column /= std or 1.0
        indicators = [self._indicators(i, name, train) for i, name in enumerate(self.text)]
        if Place.from_env().rank == 0:
            kind = "standardised" if standardize else "as they are"
            width = sum(part.shape[1] for part in indicators)
            columns = f"{len(self.numeric)} number columns, {kind}; {len(self.text)} text columns, {width} indicators"
            log.info("%s: %s", self.file.name, columns)
        return np.concatenate([x, *indicators], axis=1) if indicators else x

    def _indicators(self, i: int, name: str, train: np.ndarray) -> np.ndarray:
        codes = self.codes[:, i]
        seen = np.unique(codes[train & (codes >= 0)])
        by_value = {code: value for value, code in self.values[name].items()}
        seen = np.array(sorted(seen.tolist(), key=by_value.__getitem__), np.int32)
        unknown = int(((codes >= 0) & ~np.isin(codes, seen)).sum())
        if unknown and Place.from_env().rank == 0:
            log.warning("column %r: %d test rows have a text that no training row has: no indicator", name, unknown)
        return (codes[:, None] == seen).astype(np.float32)

    def owners(self, name: str) -> np.ndarray:
        """Return the owner of each row, numbered in sorted order. Raises UsageError."""
        different, numbers = np.unique(self.owner, return_inverse=True)
        if len(different) < 2:
            raise UsageError(
                f"data.args.owner={name!r}: every row has the same owner, {different[0]}; name another column",
                code="table-owner",
            )
        return numbers.astype(np.int64)


def _batches(file: Path) -> Iterator[Any]:
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise UsageError("needs pyarrow; install it with pip install 'fedddp[tables]'", code="table-pyarrow") from None
    if not file.is_file():
        raise UsageError(f"data.args.file: {file} does not exist; name a file below data.root", code="table-file")
    with file.open("rb") as start:
        binary = start.read(4) == b"PAR1"
    if binary:
        yield from pyarrow.parquet.ParquetFile(file).iter_batches()
    else:
        yield from pyarrow.csv.open_csv(file, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _check_numbers(schema: Any, names: Sequence[str]) -> None:
    import pyarrow as pa

    for name in names:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            what = "is empty" if pa.types.is_null(kind) else f"holds {kind}, which is neither number nor text"
            raise UsageError(f"column {name!r} {what}; leave it out by data.args.ignore", code="table-column")


def _numbers(columns: Sequence[Any], rows: int, shaped: bool) -> np.ndarray:
    """Return [rows, columns]: float32, NaN where a value is missing; uint8 if ``shaped`` and all are pixels."""
    numbers = np.empty((rows, len(columns)), np.float32)
    for i, column in enumerate(columns):
        numbers[:, i] = column.cast("float64").to_numpy(zero_copy_only=False)
    pixels = numbers.astype(np.uint8) if shaped and ((numbers >= 0) & (numbers <= 255)).all() else None
    return pixels if pixels is not None and (pixels == numbers).all() else numbers


def _codes(column: Any, values: dict[str, int], name: str) -> np.ndarray:
    """Return the number of each text in ``values``, which grows by the new ones; -1 where it is missing."""
    encoded = column.cast("string").dictionary_encode()
    known = np.array([values.setdefault(v, len(values)) for v in encoded.dictionary.to_pylist()] or [-1], np.int32)
    if len(values) > MOST_VALUES:
        raise UsageError(
            f"column {name!r} has more than {MOST_VALUES} different texts; leave it out by data.args.ignore",
            code="table-values",
        )
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(indices < 0, -1, known[indices])


def _plain(batch: Any, name: str, before: int) -> np.ndarray:
    """Return a column as numbers or text, ``before`` rows into the file. Raises UsageError if a value is missing."""
    column = batch.column(name)
    if column.null_count:
        row = before + column.is_null().to_numpy(zero_copy_only=False).argmax() + 1
        raise UsageError(f"column {name!r}: the value in row {row} is missing; complete it", code="table-missing")
    if _is_text(column.type):
        return np.array(column.cast("string").to_pylist(), dtype=np.str_)
    return column.to_numpy(zero_copy_only=False)


def _is_test(column: np.ndarray, name: str) -> np.ndarray:
    words = [str(value).lower().removesuffix(".0") for value in column.tolist()]
    for word in set(words) - TEST_WORDS.keys():
        raise UsageError(f"data.args.test_column={name!r}: has {word!r}; expected train or test", code="table-split")
    return np.array([TEST_WORDS[word] for word in words])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Return the rows of all ``parts``, which are let go one by one: a table is not in memory twice."""
    if not parts:
        return np.zeros(0, np.int64)
    rows, at = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.result_type(*{p.dtype for p in parts})), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        rows[at : at + len(part)] = part
        at += len(part)
    return rows


def _check_finite(rows: _Rows, missing: str) -> None:
    """Raise UsageError for a value that is infinite, or missing where that is refused; it names column and row."""
    for i, name in enumerate(rows.numeric):
        column = rows.numbers[:, i]
        if column.dtype != np.uint8 and not np.isfinite(column).all():
            _refuse(name, np.isinf(column), "infinite", "leave the column out by data.args.ignore")
            if missing == "refuse":
                _refuse(name, np.isnan(column), "missing or NaN", "set data.args.missing=mean, or leave it out")
    for i, name in enumerate(rows.text):
        if missing == "refuse":
            _refuse(name, rows.codes[:, i] < 0, "missing", "set data.args.missing=mean, or leave it out")


def _refuse(name: str, bad: np.ndarray, what: str, remedy: str) -> None:
    if bad.any():
        raise UsageError(
            f"column {name!r}: {bad.sum()} values are {what}, the first in row {bad.argmax() + 1}; {remedy}",
            code="table-missing",
        )
