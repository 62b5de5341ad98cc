"""List the configurations that come with the package, each with the first line of its header."""

import textwrap
from argparse import Namespace

from ..registry.shipped import shipped, title
from .help import width


def answer(args: Namespace) -> str:
    """``fedddp show configs``."""
    found = shipped()
    wide = max(map(len, found)) + 2
    lines = (f"{name:{wide}}{title(path)}" for name, path in found.items())
    return "\n".join(textwrap.fill(line, width(), subsequent_indent=" " * wide) for line in lines)
