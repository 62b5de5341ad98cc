"""Bounds that hold for every value of a configuration, whatever its key: what files, tensors and paths can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..choice import UsageError

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
    """A value for a message: on one line, and not longer than a line."""
    if isinstance(value, int) and abs(value) > 10**80:  # Python refuses to print some
        return f"a number of {math.log10(abs(value)):.0f} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


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
