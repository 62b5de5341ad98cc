"""Bounds that hold for every value of a configuration, whatever its key: what files, tensors and paths can hold."""

import math
from collections.abc import Mapping
from typing import Any, Self

from ..errors import UsageError

LARGEST_INT, LARGEST_FLOAT = 2**63 - 1, 1e30  # of int64; room for products in float32, which ends at 3.4e38
LONGEST_NAME, LONGEST_PATH, DEEPEST = 255, 4096, 16  # bytes of a name in a path, as Linux has it; of a path; tables
PATHS = frozenset(
    {
        "run.resume",
        "data.name",
        "data.root",
        "data.partition.path",
        "model.name",
        "model.weights",
        "privacy.secure_aggregation.roster",
        "privacy.secure_aggregation.key",
    }
)


class _Written:
    """A number and the ``text`` that it was written as."""

    text: str

    def __new__(cls, value: Any, text: str = "") -> Self:
        number: Any = super().__new__
        made = number(cls, value)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text


class Digits(_Written, int):
    """A whole number and the ``text`` that it was written as."""


class Decimals(_Written, float):
    """The same for any other number."""


def check_kept(written: Mapping[str, Any], made: Mapping[str, Any], prefix: str = "") -> None:
    """Raise UsageError where a value ``made`` of what was ``written`` is another, or is none that a file can hold."""
    for name, value in made.items():
        key, source = f"{prefix}{name}", written.get(name)
        if isinstance(value, Mapping):
            check_kept(source if isinstance(source, Mapping) else {}, value, f"{key}.")
            continue
        _check_storable(value, key)
        before, after = (v if isinstance(v, list | tuple) else (v,) for v in (source, value))
        for one, other in zip(before, after, strict=False):
            if type(one).__name__ in ("bool", "bool_") and type(other) in (int, float):  # numpy's is bool or bool_
                raise UsageError(f"{key}={shortened(source)}: should be a number; true and false are none")
            if isinstance(one, int) and isinstance(other, float) and one != other:
                raise UsageError(f"{key}={shortened(source)}: no float is exactly this number; the next is {other!r}")


def _check_storable(value: Any, key: str) -> None:
    for one in value if isinstance(value, list | tuple) else ():
        _check_storable(one, key)
    if isinstance(value, Mapping):
        for name, one in value.items():
            _check_storable(one, f"{key}.{name}")
    elif not isinstance(value, bool | int | float | str | list | tuple):
        raise UsageError(
            f"{key}={shortened(value)}: {type(value).__name__} cannot be written to config.toml; give a number, text, "
            "a list or a table"
        )


def check_plain(value: Any, key: str = "", depth: int = 0) -> None:
    """Raise UsageError naming the first key whose value, or part of it, is beyond the bounds; objects pass."""
    if depth > DEEPEST:
        raise UsageError(f"{key}: tables or lists are nested more than {DEEPEST} deep; the sections are flatter")
    if isinstance(value, Mapping):
        for name, inside in value.items():
            _check_text(str(name), key or "configuration")
            check_plain(inside, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list | tuple):
        for inside in value:
            check_plain(inside, key, depth + 1)
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        raise UsageError(f"{key}={shortened(value)}: is beyond 64 bits; give a number up to {LARGEST_INT}")
    elif isinstance(value, float) and math.isfinite(value) and abs(value) > LARGEST_FLOAT:
        raise UsageError(f"{key}={value!r}: is beyond {LARGEST_FLOAT:g}, which float32 arithmetic cannot use")
    elif isinstance(value, str):
        _check_text(value, key)


def shortened(value: Any) -> str:
    """A value for a message, on one line. Of a long one, both ends: the name of a file is the end of its path."""
    if isinstance(value, int) and abs(value) > 10**80:  # Python refuses to print some
        return f"a number of {math.log10(abs(value)):.0f} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-30:]} ({len(text)} characters)"


def one_line(text: str) -> str:
    """``text`` with line breaks and control characters escaped, as `repr` would."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def _check_text(text: str, key: str) -> None:
    if "\0" in text:
        raise UsageError(f"{key}: {shortened(text)} has a NUL character, which no name or path may have")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{key}: {shortened(text)} is not valid UTF-8") from None
    if key in PATHS and (len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME):
        bounds = f"a name has at most {LONGEST_NAME} bytes and a path {LONGEST_PATH}"
        raise UsageError(f"{key}={shortened(text)}: is too long; {bounds}")
