"""Columns of a CSV or Parquet file, read in batches by pyarrow: numbers as float32, text as codes."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..comm.world import Place
from ..errors import UsageError, first_line
from .labels import listed

log = logging.getLogger("fedddp")

TEST_WORDS = {"test": True, "train": False, "true": True, "false": False, "1": True, "0": False}
BLOCK = 2**20
"""Bytes of a CSV file that are read together."""
AT_ONCE = 2**16
"""Rows that are moved together."""
MOST_VALUES = 1000
"""Different values of a text column that become indicators; more of them are hardly categories."""


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are for."""

    target: Sequence[str]
    owner: str
    split: str
    columns: Sequence[str]
    ignore: Sequence[str]

    def inputs(self, names: Sequence[str]) -> list[str]:
        """Return the input columns of a file with columns ``names``. Raises UsageError."""
        for key, wanted in (
            ("target", self.target),
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
        apart = {*self.target, self.owner, self.split, *self.ignore}
        inputs = [name for name in self.columns or names if name not in apart]
        if not inputs:
            raise UsageError("no column is left to predict from; change data.args.columns", code="table-column")
        return inputs


@dataclass
class Rows:
    """The rows of a table: numbers [n, numeric], codes of text [n, text]; the other columns [n].

    Attributes:
        file: where they are from, for messages.
        numeric, text: the input columns that hold numbers, and those that hold text.
        values: the code of each text of each text column.
        owned: the code of each owner.
        target: numbers or text, which `Dataset.of` turns into targets; of several columns [n, columns].
        owner: the code of each row's owner.
        split: whether a row is one of the test set.
    """

    file: Path
    numeric: list[str]
    text: list[str]
    values: dict[str, dict[Any, int]]
    owned: dict[Any, int]
    numbers: np.ndarray
    codes: np.ndarray
    target: Any
    owner: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def read(cls, file: Path, roles: Roles, shaped: bool, like: "Rows | None" = None) -> "Rows":
        """Read ``file``, in batches; text gets the codes that it has in ``like``. Raises UsageError."""
        import pyarrow as pa

        numeric, text, values, owners = [], [], like.values if like else {}, like.owned if like else {}
        columns = {name: _Growing() for name in ("numbers", "codes", "target", "owner", "split")}
        before = 0
        try:
            for batch, rows in _batches(file):
                if not before:
                    inputs = roles.inputs(batch.schema.names)
                    text = [n for n in inputs if _is_text(batch.schema.field(n).type)]
                    numeric = [n for n in inputs if n not in text]
                    _check_numbers(batch.schema, numeric)
                coded = [_codes(batch.column(n), values.setdefault(n, {}), n, MOST_VALUES) for n in text]
                parts = {
                    "numbers": _numbers([batch.column(n) for n in numeric], batch.num_rows, shaped),
                    "codes": np.array(coded, np.int32).reshape(len(text), batch.num_rows).T,
                    "target": _targets(batch, roles.target, before),
                }
                if roles.owner:
                    parts["owner"] = _codes(_complete(batch, roles.owner, before), owners, roles.owner)
                if roles.split:
                    parts["split"] = _is_test(_plain(batch, roles.split, before), roles.split)
                for name, part in parts.items():
                    columns[name].add(part, rows)
                before += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{file}: cannot be read ({first_line(error)})", code="table-file") from None
        if not before:
            raise UsageError(f"{file}: has no row", code="table-file")
        pa.default_memory_pool().release_unused()  # 40 MB
        return cls(file, numeric, text, values, owners, **{name: column.rows() for name, column in columns.items()})

    def joined(self, other: "Rows") -> "Rows":
        """Return these rows with those of ``other`` behind them. Raises UsageError where columns differ."""
        if (self.numeric, self.text) != (other.numeric, other.text):
            raise UsageError(
                f"{other.file}: its columns, or their types, are not those of {self.file}; write both alike",
                code="table-columns-differ",
            )
        both = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("numbers", "codes", "target", "owner", "split")
        }
        return Rows(self.file, self.numeric, self.text, other.values, other.owned, **both)

    def with_rows_of(self, file: Path, shaped: bool) -> "Rows":
        """Return these rows, and behind them those of ``file``, of which only inputs are read. Raises UsageError."""
        roles = Roles((), "", "", [*self.numeric, *self.text], ())
        new = Rows.read(file, roles, shaped, self)
        fill = {name: np.repeat(getattr(self, name)[:1], len(new), axis=0) for name in ("target", "owner", "split")}
        return self.joined(replace(new, **fill))

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
        self._check_finite("refuse")
        return self.numbers.reshape(len(self), *shape)

    def inputs(self, train: np.ndarray, *, standardize: bool, missing: str) -> np.ndarray:
        """Return the inputs [n, d]: numbers, then indicators of text; what is fitted is fitted on ``train`` (bool)."""
        self._check_finite(missing)
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

    def summary(self, x: np.ndarray, standardized: bool) -> str:
        """Return how many columns of which kind became the inputs ``x``."""
        kind, count = "standardised" if standardized else "as they are", len(self.numeric)
        indicators = x.shape[1] - count if self.text else 0
        return f"{count} number columns, {kind}; {len(self.text)} text columns, {indicators} indicators"

    def owners(self, name: str) -> np.ndarray:
        """Return the owner of each row, numbered in sorted order. Raises UsageError."""
        if len(self.owned) < 2:
            raise UsageError(
                f"data.args.owner={name!r}: every row has the same owner, {next(iter(self.owned))}; name another "
                "column",
                code="table-owner",
            )
        order = np.empty(len(self.owned), np.int64)
        order[[self.owned[value] for value in sorted(self.owned)]] = np.arange(len(order))
        return order[self.owner]

    def _check_finite(self, missing: str) -> None:
        """Raise UsageError for a value that is infinite, or missing where that is refused; it names column and row."""
        for i, name in enumerate(self.numeric):
            column = self.numbers[:, i]
            if column.dtype != np.uint8 and not np.isfinite(column).all():
                _refuse(name, np.isinf(column), "infinite", "leave the column out by data.args.ignore")
                if missing == "refuse":
                    _refuse(name, np.isnan(column), "missing or NaN", "set data.args.missing=mean, or leave it out")
        for i, name in enumerate(self.text):
            if missing == "refuse":
                _refuse(name, self.codes[:, i] < 0, "missing", "set data.args.missing=mean, or leave it out")


class _Growing:
    """Rows that come batch by batch in one array, of about the size that they will have: memory that is not yet written
    is none, and no row is ever in memory twice."""

    def __init__(self) -> None:
        self._array, self._used = np.zeros(0, np.int64), 0

    def add(self, part: np.ndarray, expected: int) -> None:
        """Append ``part``, of ``expected`` rows in all."""
        end = self._used + len(part)
        kind = np.result_type(self._array, part) if self._used else part.dtype
        if end > len(self._array) or kind != self._array.dtype:
            larger = np.empty((max(expected, end + end // 4), *part.shape[1:]), kind)
            if self._used:
                larger[: self._used] = self._array[: self._used]
            self._array = larger
        self._array[self._used : end] = part
        self._used = end

    def rows(self) -> np.ndarray:
        return self._array[: self._used]


def divided(x: Any, test: np.ndarray) -> tuple[Any, Any]:
    """Return the rows of ``x`` that are not in the test set, and those that are. ``x`` is overwritten by the former."""
    rest, used = x[test], 0
    for first in range(0, len(x), AT_ONCE):
        part = x[first : first + AT_ONCE][~test[first : first + AT_ONCE]]
        x[used : used + len(part)] = part
        used += len(part)
    return x[:used], rest


def _batches(file: Path) -> Iterator[tuple[Any, int]]:
    """Batches of rows, and about how many rows there are in all."""
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
        parquet = pyarrow.parquet.ParquetFile(file)
        yield from ((batch, parquet.metadata.num_rows) for batch in parquet.iter_batches())
        return
    block = pyarrow.csv.ReadOptions(block_size=BLOCK)
    convert = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    expected = 0
    for batch in pyarrow.csv.open_csv(file, read_options=block, convert_options=convert):
        expected = expected or math.ceil(1.05 * batch.num_rows * max(1.0, file.stat().st_size / BLOCK))
        yield batch, expected


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


def _codes(column: Any, values: dict[Any, int], name: str, most: float = math.inf) -> np.ndarray:
    """Return the number of each value in ``values``, which grows by the new ones; -1 where it is missing."""
    encoded = (column.cast("string") if _is_text(column.type) else column).dictionary_encode()
    known = np.array([values.setdefault(v, len(values)) for v in encoded.dictionary.to_pylist()] or [-1], np.int32)
    if len(values) > most:
        raise UsageError(
            f"column {name!r} has more than {most} different texts; leave it out by data.args.ignore",
            code="table-values",
        )
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(indices < 0, -1, known[indices])


def _complete(batch: Any, name: str, before: int) -> Any:
    """Return a column, ``before`` rows into the file. Raises UsageError if a value is missing."""
    column = batch.column(name)
    if column.null_count:
        row = before + column.is_null().to_numpy(zero_copy_only=False).argmax() + 1
        raise UsageError(f"column {name!r}: the value in row {row} is missing; complete it", code="table-missing")
    return column


def _plain(batch: Any, name: str, before: int) -> np.ndarray:
    """Return a column as numbers or text; see `_complete`."""
    column = _complete(batch, name, before)
    if _is_text(column.type):
        return np.array(column.cast("string").to_pylist(), dtype=np.str_)
    return column.to_numpy(zero_copy_only=False)


def _targets(batch: Any, names: Sequence[str], before: int) -> np.ndarray:
    """Return the target of each row, [b], or of several columns [b, columns]."""
    columns = [_plain(batch, name, before) for name in names]
    if not columns:
        return np.zeros(batch.num_rows)
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _is_test(column: np.ndarray, name: str) -> np.ndarray:
    words = [str(value).lower().removesuffix(".0") for value in column.tolist()]
    for word in set(words) - TEST_WORDS.keys():
        raise UsageError(f"data.args.test_column={name!r}: has {word!r}; expected train or test", code="table-split")
    return np.array([TEST_WORDS[word] for word in words])


def _refuse(name: str, bad: np.ndarray, what: str, remedy: str) -> None:
    if bad.any():
        raise UsageError(
            f"column {name!r}: {bad.sum()} values are {what}, the first in row {bad.argmax() + 1}; {remedy}",
            code="table-missing",
        )
