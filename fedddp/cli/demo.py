"""Run a demonstration of examples/privacy: what updates give away, and what protects them."""

import sys
from argparse import Namespace
from importlib import import_module

from ..errors import UsageError
from .commands import EXAMPLES


def run(args: Namespace) -> int:
    """Run the demonstration that ``args`` name; see `fedddp.cli.options.demo`. Its exit code."""
    if not EXAMPLES.is_dir():
        raise UsageError(
            f"demo {args.name}: the demonstrations are not part of the installed package; clone the repository, which "
            "has them in examples/privacy"
        )
    sys.path.insert(0, str(EXAMPLES.parents[1]))
    return import_module(f"examples.privacy.{args.name}").main(args.given)
