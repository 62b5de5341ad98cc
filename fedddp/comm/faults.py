"""Injected faults, for tests: a rank is killed, stopped or altered at a named point of a round.

    FEDDDP_FAULT="kill@round=2,rank=1,point=before aggregate" fedddp launch -n 3

Several are separated by semicolons. ``round`` counts from 1 (default: any); ``rank`` is one rank (default: any);
``attempt`` is how often the ranks were started again before (default 0, so that a fault does not follow a restart).

``point`` is ``train`` (a rank begins its clients), ``evaluate`` or another phase that `Comm.enter` reports, ``before``
or ``after`` and the purpose of a collective (`Purpose`, such as ``before aggregate``), or ``checkpoint``, as the
files of one are about to get their name. Each fault happens once in a process.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ..errors import UsageError

VARIABLE = "FEDDDP_FAULT"


def _signalled(number: signal.Signals) -> Callable[[Tensor | None], None]:
    return lambda x: os.kill(os.getpid(), number)


def _hang(x: Tensor | None) -> None:
    while True:  # no safe point is passed
        time.sleep(3600)


def _raise(x: Tensor | None) -> None:
    raise RuntimeError(f"injected by {VARIABLE}")


def _fill(value: float) -> Callable[[Tensor | None], None]:
    def fill(x: Tensor | None) -> None:
        if x is not None and x.is_floating_point():
            x.view(-1)[:1].fill_(value)

    return fill


KINDS: dict[str, Callable[[Tensor | None], None]] = {
    "kill": _signalled(signal.SIGKILL),
    "stop": _signalled(signal.SIGSTOP),
    "term": _signalled(signal.SIGTERM),
    "hup": _signalled(signal.SIGHUP),
    "abort": _signalled(signal.SIGABRT),
    "hang": _hang,
    "raise": _raise,
    "exit": lambda x: os._exit(7),
    "nan": _fill(float("nan")),
    "huge": _fill(1e9),
}
"""What can happen; ``nan`` and ``huge`` alter the first entry of the tensor that a collective is about to send."""


@dataclass(frozen=True)
class Fault:
    """One fault, see the module's text."""

    kind: str
    point: str
    rank: int | None = None
    round: int | None = None
    attempt: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``kind@key=value,...``. Raises UsageError."""
        kind, _, rest = text.strip().partition("@")
        pairs = (word.strip().partition("=") for word in rest.split(",") if word)
        words = {key.strip(): value for key, _, value in pairs}
        numbers = {key: int(words.pop(key)) for key in ("rank", "round", "attempt") if words.get(key, "").isdecimal()}
        point = words.pop("point", "train")
        if kind not in KINDS or words:
            raise UsageError(
                f"{VARIABLE}={text!r}: should be KIND@round=T,rank=R,point=POINT with KIND {', '.join(KINDS)}"
            )
        return cls(kind, point, **numbers)


class Faults:
    """The faults that are still to happen in this process.

    Args:
        env: with `VARIABLE`, or without.
        rank: this rank.
        attempt: how often the ranks were started again.
    """

    def __init__(self, env: Mapping[str, str], rank: int, attempt: int = 0) -> None:
        faults = [Fault.parse(text) for text in env.get(VARIABLE, "").split(";") if text.strip()]
        self._due = [f for f in faults if f.rank in (None, rank) and f.attempt == attempt]
        self._round = 0

    def reach(self, point: str, x: Tensor | None = None) -> None:
        """Let happen what is due at ``point``; ``x`` is what a collective is about to send."""
        if not self._due:
            return
        if number := re.search(r" in round (\d+)$", point):
            self._round = int(number[1])
            point = point[: number.start()]
        for fault in list(self._due):
            if fault.point == point and fault.round in (None, self._round):
                self._due.remove(fault)
                KINDS[fault.kind](x)
