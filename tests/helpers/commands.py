"""The commands of ``fedddp`` as functions of their words, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fedddp.cli.main import main


def command(name: str) -> Callable[[Sequence[str]], int]:
    """``command("show")(words)`` runs ``fedddp show`` with them; its exit code."""
    return partial(main, command=name)
