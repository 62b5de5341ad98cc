"""``fedddp COMMAND``: read the command line, answer help without torch, run the command (`fedddp.cli.outcome`)."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..errors import DONE, INTERRUPTED, USAGE, UsageError
from ..registry.spelling import suggestion
from .commands import COMMANDS, Command
from .help import Parser, overview, say


def main(argv: Sequence[str] | None = None, command: str = "") -> int:
    """Run a command.

    Args:
        argv: the words of the command line; by default this process's.
        command: the command; by default the first word, or the first two.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    try:
        if not command and (not words or words[0] in ("-h", "--help", "--version")):
            say(f"fedddp {__version__}" if "--version" in words[:1] else overview())
            return DONE
        name = command or _named(words)
        chosen = COMMANDS[name]
        args = _read(name, words if command else words[len(name.split()) :])
        if chosen.answers:
            say(getattr(import_module(chosen.module), chosen.answers)(args))
            return DONE
    except SystemExit:  # argparse, after help or the version
        return DONE
    except UsageError as error:
        if "RANK" not in os.environ:
            print(f"fedddp: {error}", file=sys.stderr)
            return USAGE
        return _ended(partial(_refuse, error))  # by one of the ranks
    if argv is None and not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, "")  # where python -m has it: a console script has its own folder there instead
    return _ended(partial(_run, chosen, args), stops=chosen.stops, ranks=chosen.ranks)


def _named(words: Sequence[str]) -> str:
    """The command that the first words name."""
    if " ".join(words[:2]) in COMMANDS:
        return " ".join(words[:2])
    if words[0] in COMMANDS:
        return words[0]
    if words[0].startswith("-") or "=" in words[0] or words[0].endswith((".toml", ".yaml")):
        raise UsageError(f"{words[0]}: a command comes first; did you mean fedddp train {' '.join(words)}?")
    near = suggestion(words[0], COMMANDS)
    raise UsageError(f"{words[0]}: unknown command{near or ';'} fedddp alone lists the commands")


def _read(name: str, words: Sequence[str]) -> Namespace:
    """The options of a command; what is left of its words is ``args.words``, the configuration."""
    parser = Parser(name, COMMANDS[name])
    words = ["--print-config=changed" if word == "--print-config" else word for word in words]  # no word of its own
    args, left = parser.parse_known_args(words)
    if left and not COMMANDS[name].configured:
        raise UsageError(f"{left[0]}: fedddp {name} takes no such argument{suggestion(left[0], parser.known)}")
    args.words, args.options = left, parser.known
    return args


def _ended(run: Callable[[], int | None], **how: bool) -> int:
    """Run a command; importing torch takes seconds, in which Ctrl-C is no error either."""
    try:
        outcome = import_module(".outcome", __package__)
    except KeyboardInterrupt:
        print("fedddp: SIGINT: stopped", file=sys.stderr)
        return INTERRUPTED
    return outcome.ended(run, **how)


def _run(command: Command, args: Namespace) -> int | None:
    return import_module(command.module).run(args)


def _refuse(error: UsageError) -> NoReturn:
    raise error
