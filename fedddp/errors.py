"""Errors and exit codes of a run, and the errors of other code in one line, for messages."""

import contextlib
import re
import signal
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 75
"""Exit codes; the last is EX_TEMPFAIL of sysexits.h: try again."""

OWN_CODE = (Exception, SystemExit)
"""What a user's own code may raise that is reported and does not end the program: sys.exit() included."""


def in_words(code: int) -> str:
    """Return how a process ended that has this exit code, which is minus the number of the signal that ended it."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


class UsageError(ValueError):
    """A mistake in the configuration or in a call: one line that names the key, the value and what to do.

    Args:
        message: "key=value: reason; remedy".
        key: the dotted key at fault; by default the one at the front of the message, if there is one.
        code: a short name of the mistake that stays the same when the wording changes; see `fedddp.setup.checks`.
    """

    def __init__(self, message: str, *, key: str | None = None, code: str = "") -> None:
        super().__init__(message)
        front = re.match(r"(?:--)?([a-z_]+(?:\.\w+)*)(?=[=:,])", message)
        self.key = key if key is not None else front[1] if front else ""
        self.code = code


@contextlib.contextmanager
def named(front: str = "") -> Iterator[None]:
    """Raise a ValueError of the block as a UsageError, with ``front`` before its message, if any; its code stays."""
    try:
        yield
    except ValueError as error:
        message, key = (f"{front}: {error}", None) if front else (str(error), getattr(error, "key", None))
        raise UsageError(message, key=key, code=getattr(error, "code", "")) from error


ALLOCATION = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
SMALLER = (
    "lower client.execution.width or client.batch_size, shorten the inputs (data.args.length), or set "
    "model.checkpointing=true"
)


def out_of_memory(error: BaseException) -> str:
    """Return what an error that memory could not be allocated means and what to do; empty for other errors."""
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and ALLOCATION.search(str(error))):
        return ""
    asked = re.search(r"allocate (\d[\d.]* ?\w+)", str(error))
    return f"out of memory{f' (tried to allocate {asked[1]})' if asked else ''}; {SMALLER}"


class NothingLearned(RuntimeError):
    """A run that ended without the contribution of a single client, or of any in its last rounds."""


class Diverged(RuntimeError):
    """A run whose model is no longer finite."""


def check_shapes(what: str, found: Mapping[str, Any], expected: Mapping[str, list[int]]) -> None:
    """Raise UsageError for the first tensor of an algorithm, by name, that is missing or has another shape."""
    for name, shape in expected.items():
        if not hasattr(found.get(name), "shape") or list(found[name].shape) != shape:
            got = list(found[name].shape) if hasattr(found.get(name), "shape") else "missing"
            raise UsageError(
                f"algorithm.name: {what} {name!r} is {got}; expected {shape}, a row for each client",
                code="algorithm-shapes",
            )


LONGEST = 500
"""Characters of a message: a library may quote the bytes of a damaged file."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to `LONGEST`, or the name of its class if it has none."""
    line = (str(error).splitlines() or [""])[0].rstrip(".:") or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def reason(error: BaseException) -> str:
    """Return the class of an error and the first line of its message."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def raised(error: BaseException) -> str:
    """Return the class of an error of a user's own code, its message, and where in that code it was raised."""
    own = Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and own not in Path(frame.filename).parents
    ]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{reason(error)}{where}"
