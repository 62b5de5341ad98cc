"""Waiting for an event, with a deadline."""

import subprocess
import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 60.0, program: subprocess.Popen[str] | None = None) -> None:
    """Wait until ``condition()`` holds. Fails after ``seconds``, and where ``program`` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert program is None or program.poll() is None, "the program ended before it happened"
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
