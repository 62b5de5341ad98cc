"""Run attempts in a process of their own, within limits of time and memory, and say what each of them came to."""

import contextlib
import faulthandler
import io
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedddp.checkpoints.account import AccountError
from fedddp.checkpoints.durable import WriteError
from fedddp.config import one_line
from fedddp.errors import NothingLearned, UsageError
from fedddp.secure.identity import IdentityError

SECONDS, PATIENCE, BYTES = 10.0, 60.0, 2 * 10**9
"""An attempt hangs that takes so many seconds of a processor, or so many of which it was mostly asleep."""
LINES = (UsageError, AccountError, IdentityError, NothingLearned, WriteError)
"""What ends a command with one line."""


@dataclass(frozen=True)
class Outcome:
    """What attempt ``number`` came to: "fine", "refused", or a failure, with the line or the traceback."""

    number: int
    kind: str
    text: str = ""

    @property
    def fails(self) -> bool:
        return self.kind not in ("fine", "refused")


def outcomes(attempt: Callable[[int], object], first: int = 0, *, limit: float = SECONDS) -> Iterator[Outcome]:
    """Yield the outcome of ``attempt(first)``, of the next one, and so on without end.

    All run in one child, which is made anew after one that it does not survive.
    """
    number = first
    while True:
        child, pipe = _started(attempt, number)
        try:
            for outcome in _read(child, pipe, number, limit):
                yield outcome
                number = outcome.number + 1
        finally:
            os.close(pipe)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _read(child: int, pipe: int, number: int, limit: float) -> Iterator[Outcome]:
    buffer, began, spent = b"", time.monotonic(), _processor(child)
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.2)
        if not ready:
            if _processor(child) - spent > limit or time.monotonic() - began > limit / SECONDS * PATIENCE:
                yield Outcome(number, "hang", f"over {limit:g} s")
                return
            continue
        part = os.read(pipe, 1 << 16)
        if not part:
            _, status = os.waitpid(child, 0)
            yield Outcome(number, "died", f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"{status}")
            return
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            number, kind, text = json.loads(line)
            yield Outcome(number, kind, text)
            number, began, spent = number + 1, time.monotonic(), _processor(child)


def _processor(child: int) -> float:
    """Seconds of a processor that a child has had: those of the clock say little on a machine with other work."""
    with open(f"/proc/{child}/stat", encoding="utf-8") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _started(attempt: Callable[[int], object], first: int) -> tuple[int, int]:
    """A child that makes attempts from number ``first`` on, and the pipe on which it says what they came to."""
    out, into = os.pipe()
    child = os.fork()
    if child:
        os.close(into)
        return child, out
    os.close(out)
    with contextlib.suppress(BaseException):
        faulthandler.disable()
        with open("/proc/self/statm", encoding="utf-8") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in range(first, 2**62):
            os.write(into, json.dumps([number, *_tried(attempt, number)]).encode() + b"\n")
    os._exit(99)


def _tried(attempt: Callable[[int], object], number: int) -> tuple[str, str]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            attempt(number)
            return "fine", ""
        except LINES as error:
            text, cause = str(error), error
            while (cause := cause.__cause__ or cause.__context__) is not None:
                if isinstance(cause, MemoryError) and getattr(error, "code", "") != "inputs-memory":
                    return "memory", text
            return ("refused" if len(one_line(text)) < 2000 else "not a short line"), text
        except MemoryError:
            return "memory", traceback.format_exc()
        except BaseException:
            return "traceback", traceback.format_exc()
