"""Hugging Face datasets, from a folder on disk or by name: ``data.name=hf``, with the library `datasets`."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OWN_CODE, UsageError, reason
from ..datasets import Dataset, Examples
from ..inputs import as_inputs, channels_first
from ..labels import listed
from .characters import ALPHABET, VOCABULARY, Length, padded
from .split import Fraction, Seed, held_out
from .tokens import PADDING, Tokenizer

AT_ONCE = 1000
"""Rows that are decoded together."""


def hugging_face(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    path: str,
    input: str,
    target: str,
    owner: str = "",
    train_split: str = "train",
    test_split: str = "test",
    test_fraction: Fraction = 0.2,
    seed: Seed = 0,
    tokenizer: str = "",
    length: Length = 80,
) -> Dataset:
    """A dataset that ``save_to_disk`` wrote below ``root``, or, with ``data.download=true``, one of the hub.

    Images become uint8 [n, C, H, W]; lists of floating-point numbers float32, whole ones token ids; text becomes its
    characters, or the tokens of a tokenizer, cut or padded to ``length``.

    Args:
        root: the folder of the dataset; one of the hub is kept there.
        download: whether ``path`` may name a dataset of the hub.
        targets: what a target is, see `TARGETS`.
        path: the folder below ``root``, or the name at the hub.
        input: the column of the inputs.
        target: the column of the targets.
        owner: the column of the owner of each row.
        train_split, test_split: the names of both sets; a dataset without the second is divided.
        test_fraction: of the rows, drawn by ``seed``; for a dataset without a test set.
        seed: see ``test_fraction``.
        tokenizer: a ``tokenizer.json``, or the folder of a model, below ``root``; its token 0 is taken for padding.
        length: tokens of a text.

    Raises:
        UsageError: one line that names the column, or how to get what is missing.
    """
    found = _opened(root, path, download)
    both = _sets(found, train_split, test_split) if isinstance(found, dict) else [found]
    if len(both) == 1:
        test = held_out(len(both[0]), test_fraction, seed)
        both = [both[0].select(np.flatnonzero(side)) for side in (~test, test)]
    for key, name in {"input": input, "target": target, "owner": owner}.items():
        if name not in (both[0].column_names if name or key != "owner" else [""]):
            raise UsageError(
                f"data.args.{key}={name!r}: this column does not exist; there are "
                f"{listed(map(repr, both[0].column_names))}",
                code="table-column",
            )
    tokens, known = _tokenizer(tokenizer, root, length) if tokenizer else (lambda text: padded(text, length), {})
    train, test = (_examples(rows, input, target, owner, tokens) for rows in both)
    dataset = Dataset.of(train, test, targets=targets)
    text = isinstance(both[0][0][input], str)
    return replace(dataset, **(known or {"vocabulary": VOCABULARY, "alphabet": ALPHABET})) if text else dataset


def _opened(root: Path, path: str, download: bool) -> Any:
    library = _library("datasets")
    library.disable_progress_bars()
    folder = root / path
    if not folder.is_dir() and not download:
        raise UsageError(
            f"data.args.path: {folder} does not exist; name a folder that save_to_disk wrote, or set "
            "data.download=true for a dataset of the hub",
            code="hf-missing",
        )
    try:
        return (
            library.load_from_disk(str(folder)) if folder.is_dir() else library.load_dataset(path, cache_dir=str(root))
        )
    except OWN_CODE as error:
        raise UsageError(
            f"data.args.path={path!r}: cannot be loaded ({reason(error)}); name a folder that save_to_disk wrote, or a "
            "dataset of the hub",
            code="hf-missing",
        ) from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"needs {name}; install it with pip install 'fedddp[hf]'", code="hf-library") from None


def _sets(found: Mapping[str, Any], train: str, test: str) -> list[Any]:
    """The training set and, unless it is all there is, the test set. Raises UsageError."""
    for key, name in (("train_split", train), ("test_split", test)):
        if name not in found and (key == "train_split" or len(found) > 1):
            raise UsageError(
                f"data.args.{key}={name!r}: does not exist; there are {listed(map(repr, found))}", code="hf-split"
            )
    return [found[name] for name in (train, test) if name in found]


def _tokenizer(path: str, root: Path, length: int) -> tuple[Callable[[str], NDArray[np.int64]], dict[str, Any]]:
    """From a text to ``length`` tokens; and the vocabulary's size and decoder. Raises UsageError."""
    tokenizer = Tokenizer.read(path, root)

    def tokens(text: str) -> NDArray[np.int64]:
        found = np.full(length, PADDING, np.int64)
        ids = tokenizer.encode(text, special=True)[:length]
        found[: len(ids)] = ids
        return found

    return tokens, {"vocabulary": tokenizer.vocabulary, "decode": tokenizer.decode}


def _examples(rows: Any, input: str, target: str, owner: str, tokens: Callable[[str], NDArray[np.int64]]) -> Examples:
    """All ``rows``, some at a time, into one tensor. Raises UsageError."""
    x: NDArray[Any] = np.empty(0)
    at, y, owners = 0, [], []
    for batch in rows.select_columns([name for name in (input, target, owner) if name]).iter(AT_ONCE):
        for value in batch[input]:
            array = _array(value, tokens, f"data.args.input={input!r}: row {at}")
            if not at:
                x = np.empty((len(rows), *array.shape), array.dtype)
            if array.shape != x.shape[1:] or array.dtype != x.dtype:
                raise UsageError(
                    f"data.args.input={input!r}: row {at} is {array.dtype} {list(array.shape)}, row 0 {x.dtype} "
                    f"{list(x.shape[1:])}; bring them to one shape and type",
                    code="inputs-shapes",
                )
            x[at] = array
            at += 1
        y.append(np.asarray(batch[target]))
        owners.append(np.asarray(batch[owner] if owner else []))
    if not at:
        raise UsageError(f"data.args.path: {rows} has no rows", code="dataset-empty")
    whose: Any = np.concatenate(owners) if owner else None
    labels: Any = np.concatenate(y)
    return Examples(channels_first(as_inputs(x, "inputs")), labels, whose)


def _array(value: Any, tokens: Callable[[str], NDArray[np.int64]], what: str) -> NDArray[Any]:
    """One input: of a text its tokens, of an image its pixels, else numbers. Raises UsageError."""
    if isinstance(value, str):
        return tokens(value)
    if hasattr(value, "convert"):
        return np.asarray(value if value.mode in ("L", "RGB") else value.convert("RGB"))
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{what} is {array.dtype}; expected an image, text or numbers", code="inputs-type")
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    return array if array.ndim else array[None]
