"""``fedddp COMMAND``: finds the command and runs it. What a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "fedddp.train",
    "show": "fedddp.cli.show",
    "plot": "fedddp.cli.plot",
    "sweep": "fedddp.cli.sweep.__main__",
    "tune": "fedddp.cli.tune",
    "generate": "fedddp.cli.generate",
    "doctor": "fedddp.cli.doctor.report",
    "split": "fedddp.cli.split",
    "keygen": "fedddp.cli.keygen",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names."""
    command, *words = [*(sys.argv[1:] if argv is None else argv), ""]
    if command not in COMMANDS:
        print(f"usage: fedddp {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 2
    return import_module(COMMANDS[command]).main(words[:-1])
