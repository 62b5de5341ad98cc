"""Say which ranks of a launch do not end, and end those that are stopped: torch itself waits 30 s without a word."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .interrupt import GRACE

log = logging.getLogger("fedddp")

PATIENCE = GRACE + 2.0
"""Seconds from the end of the first rank after which the others count as overdue."""
EVERY = 0.5
"""Seconds between two looks."""


@contextmanager
def watched(ranks: int) -> Iterator[None]:
    """Inside the block look after the ``ranks`` that this process starts: when one has ended, the others should."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(ranks, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(ranks: int, over: threading.Event) -> None:
    since, reported = time.monotonic(), set[int]()
    began = False
    while not over.wait(EVERY):
        alive = _children()
        began = began or len(alive) >= ranks
        if not began or len(alive) >= ranks:  # not started, or all at work, maybe after a restart
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            for pid in alive.keys() - reported:
                _report(pid, stopped=alive[pid] == "T")
            reported |= alive.keys()


def _report(pid: int, *, stopped: bool) -> None:
    if stopped:
        log.warning("process %d, a rank, is stopped (SIGSTOP) and cannot end: it is killed", pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return
    log.warning(
        "process %d, a rank, has not ended %g s after another one: it still writes files, or is in a call that lets no "
        "other thread work; if the run failed, it is killed 30 s after it was asked to stop",
        pid,
        PATIENCE,
    )


def _children() -> dict[int, str]:
    """The living children of this process, and what each does, as /proc has it: T for one that is stopped."""
    found: dict[int, str] = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, children.read_text(encoding="utf-8").split()):
                with suppress(OSError, IndexError):
                    found[pid] = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return {pid: state for pid, state in found.items() if state != "Z"}
