"""Being asked to stop: SIGTERM, SIGINT, or a launcher that died, noticed at the next safe point.

The handlers only set a flag. Local steps, evaluation batches and waiting collectives call `check`, which raises
`Interrupted` where nothing is half written.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType


class Interrupted(BaseException):
    """The run was asked to stop. Not an `Exception`: a failing client is tolerated, a request to stop is not."""


_reason: str | None = None


def check() -> None:
    """Raise `Interrupted` if the process was asked to stop; costs one comparison."""
    if _reason is not None:
        raise Interrupted(_reason)


def request(reason: str) -> None:
    """Ask this process to stop at its next safe point."""
    global _reason
    _reason = _reason or reason


def clear() -> None:
    """Forget a request (a new run in the same process)."""
    global _reason
    _reason = None


def install(grace: float = 4.0) -> None:
    """Handle SIGTERM and SIGINT, and under torchrun watch for its death, so that a killed launcher leaves no orphan.

    A process that is stuck where no safe point comes leaves by itself ``grace`` seconds after its launcher died.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        request(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch_parent, args=(os.getppid(), grace), daemon=True).start()


def _watch_parent(parent: int, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    request("the launcher died")
    time.sleep(grace)
    os._exit(1)
