"""``fedddp predict``: what the model of a run predicts for images, rows of tables, arrays and beginnings of texts."""

import csv
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from ..config import build, merge, read_toml
from ..data.inputs import channels_first
from ..data.readers.arrays import UNREADABLE
from ..data.readers.images import SUFFIXES, read_images
from ..data.tables import inputs_like
from ..errors import UsageError, first_line, named
from ..registry.choice import user_path
from ..telemetry import console
from ..trained import Trained
from .continuation import readable, text_of
from .export.command import check_run, chosen
from .outcome import asked

AT_ONCE = 200
ROWS_PRINTED = 40


def run(args: Namespace) -> None:
    """Predict for the files of ``args``; see `fedddp.cli.options.predict`."""
    check_run(args.run)
    layer: dict[str, Any] = {}
    for one in asked(args).layers:
        layer = merge(layer, one)
    if layer:  # a key that does not exist is refused, also where nothing reads it
        table = read_toml(args.run / "config.toml")
        build({section: keys for section, keys in table.items() if section != "model"}, layer)
    model = readable(chosen(args.run, args.round, args.client, layer))
    columns: dict[str, list[Any]] = defaultdict(list)
    for file in args.files:
        inputs = _checked(model, file, _reader(file)(model, file, args))
        for name, values in _answers(model, inputs).items():
            columns[name] += values
        columns["file"] += [str(file)] * len(inputs)
        columns["row"] += range(1, len(inputs) + 1)
    if max(columns["row"]) == 1:
        del columns["row"]
    names = [name for name in ("file", "row") if name in columns]
    names += [name for name in columns if name not in names]
    rows = list(zip(*(columns[name] for name in names), strict=True))
    if args.out:
        _write(args.out, names, rows)
    _print(names, rows, f"{args.run}, round {model.round}")


def _answers(model: Trained, inputs: Tensor) -> dict[str, list[Any]]:
    """The columns that a model predicts, classes by their names."""
    predictor, found = model.predictor(), defaultdict[str, list[Any]](list)
    with torch.no_grad():
        for some in inputs.split(AT_ONCE):
            for name, values in model.task.answers(predictor, some).items():
                found[name] += values
    if (called := model.dataset.class_names) and "class" in found:
        found["class"] = [called[c] for c in found["class"]]
    return found


def _checked(model: Trained, file: Path, x: Tensor) -> Tensor:
    """Return ``x`` if the model takes such inputs. Raises UsageError."""
    like = model.dataset.train.x
    text = model.dataset.num_tokens and x.dim() == like.dim() == 2  # a beginning of a text has any length
    if x.dtype != like.dtype or (x.shape[1:] != like.shape[1:] and not text):
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {['n', *t.shape[1:]]}".replace("'", "") for t in (x, like)]
        raise UsageError(f"{file}: holds inputs {kinds[0]}, the model takes {kinds[1]}; bring them to its form")
    return x


def _image(model: Trained, file: Path, args: Namespace) -> Tensor:
    like = model.dataset.train.x
    if like.dtype != torch.uint8 or like.dim() != 4 or like.shape[1] not in (1, 3):
        raise UsageError(
            f"{file}: is an image, and the model of this run takes inputs {list(like.shape[1:])} of "
            f"{str(like.dtype).removeprefix('torch.')}; give them as the array x of an .npz file"
        )
    try:
        return read_images([file], like.shape[2:], like.shape[1], resized=args.resize)
    except UsageError as error:
        if error.code != "images-size":
            raise
        raise UsageError(
            f"{file}: is not {like.shape[2]} x {like.shape[3]}, as in training; --resize scales it"
        ) from None


def _array(model: Trained, file: Path, args: Namespace) -> Tensor:
    try:
        with np.load(file) as arrays:
            name = "x" if "x" in arrays else arrays.files[0] if len(arrays.files) == 1 else ""
            if not name:
                raise UsageError(f"{file}: has the arrays {', '.join(arrays.files)}; name that of the inputs x")
            return channels_first(torch.from_numpy(arrays[name]))
    except UsageError:
        raise
    except (*UNREADABLE, TypeError) as error:
        raise UsageError(f"{file}: cannot be read ({first_line(error)})") from None


def _table(model: Trained, file: Path, args: Namespace) -> Tensor:
    data = model.table.get("data", {})
    if data.get("name") not in ("csv", "parquet"):
        raise UsageError(f"{file}: is a table, and this run learned from data.name={data.get('name')!r}")
    with named(str(file)):
        return inputs_like(file, user_path(data["root"]), data["args"])


def _text(model: Trained, file: Path, args: Namespace) -> Tensor:
    how = text_of(model)
    if how is None:
        raise UsageError(f"{file}: is a text, and the model of this run does not read text")
    try:
        text = file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({first_line(error)})") from None
    return torch.tensor([how.encode(text or "\n") or [1]])


Reader = Callable[[Trained, Path, Namespace], Tensor]
READERS: dict[str, Reader] = {
    **dict.fromkeys(SUFFIXES, _image),
    ".npz": _array,
    ".csv": _table,
    ".parquet": _table,
    ".txt": _text,
}
"""From the end of a file's name to what reads its inputs."""


def _reader(file: Path) -> Reader:
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    if file.suffix.lower() not in READERS:
        raise UsageError(f"{file}: should end in {', '.join(READERS)}")
    return READERS[file.suffix.lower()]


def _write(path: Path, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    except OSError as error:
        raise UsageError(f"--out={path}: cannot be written ({error.strerror})") from None


def _print(names: list[str], rows: list[tuple[Any, ...]], title: str) -> None:
    table = Table(title=title)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows[:ROWS_PRINTED]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    console().print(table)
    if len(rows) > ROWS_PRINTED:
        print(f"{len(rows) - ROWS_PRINTED} more rows; --out=FILE.csv has all")
