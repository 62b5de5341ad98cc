"""The parser of a command's options, and help: on all commands, on one, and on the keys of a configuration."""

import argparse
import os
import shutil
import sys
from argparse import Namespace
from functools import partial
from typing import Any, NoReturn

from .. import __version__
from ..errors import UsageError
from ..registry.spelling import SHORT, suggestion
from . import keys
from .commands import COMMANDS, EXAMPLES, Command
from .reference import reference

OVERVIEW = """\
usage: fedddp COMMAND [...]

Federated learning as a torch.distributed program: each rank hosts clients, and a weighted
all-reduce replaces the server.

{commands}

examples:
  fedddp train --rounds=5 --clients=4              four clients in this process, on real digits
  fedddp launch -n 4 --algorithm=scaffold          four ranks, one client each
  fedddp train mnist/fedavg_e5 --data.root=data    a configuration that comes with the package
  fedddp help model                                the models, and their keys
  fedddp COMMAND --help                            what a command does

{codes}"""
CODES = "exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted"
CONFIGURATION = """\
configuration, from left to right:
  FILE.toml             a file; or a name that fedddp show configs lists
  --section.key=value   any key: fedddp help lists the sections, fedddp help SECTION the keys"""


def answer(args: Namespace) -> str:
    """``fedddp help [TOPIC]``."""
    return described(" ".join(args.topic))


def described(topic: str) -> str:
    """Help on a topic: a command, a section, a choice, a key, or nothing in particular."""
    known, wide = reference(), width()
    if not topic:
        return f"{overview()}\n\nsections of a configuration (fedddp help SECTION):\n{keys.sections()}"
    if topic in COMMANDS:
        return Parser(topic, COMMANDS[topic]).format_help()
    topic = SHORT.get(topic, topic) if topic not in known.sections else topic
    path, _, name = topic.rpartition(".")
    if path in known.choices and name in known.choices[path].names:
        return keys.section(path, wide, name)
    if any(key.name == topic for key in known.keys):
        return keys.single(topic, wide)
    if known.below(topic):
        return keys.section(topic, wide)
    named = [at for at, choice in known.choices.items() if topic in choice.names and not choice.like]
    ending = dict.fromkeys(key.name for key in known.keys if key.name.endswith(f".{topic}"))
    if named or ending:
        found = [*(keys.section(at, wide, topic) for at in named), *(keys.single(name, wide) for name in ending)]
        return "\n\n".join(found)
    every = [*COMMANDS, *known.sections, *known.choices, *(key.name for key in known.keys)]
    near = suggestion(topic, [*every, *(f"{at}.{n}" for at, choice in known.choices.items() for n in choice.names)])
    raise UsageError(f"{topic}: unknown topic{near or ';'} fedddp help lists commands and sections")


def overview() -> str:
    """What ``fedddp`` alone prints."""
    absent = "not available: its programs are in the repository, not in the installed package"
    here = {name: name != "demo" or EXAMPLES.is_dir() for name in COMMANDS}
    lines = (f"  {name:14}{command.about if here[name] else absent}" for name, command in COMMANDS.items())
    return OVERVIEW.format(commands="\n".join(lines), codes=CODES)


def width() -> int:
    """The number of columns that help takes."""
    return min(100, max(60, shutil.get_terminal_size().columns))


def say(text: str) -> None:
    """Print an answer, on one rank of several; a reader that has gone has read enough."""
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        print(text.rstrip(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """The options of one command. A mistake raises `UsageError`."""

    def __init__(self, name: str, command: Command) -> None:
        formatter: Any = partial(argparse.HelpFormatter, max_help_position=30, width=width())
        takes = f"{command.takes} [FILE.toml ...] [--section.key=value ...]" if command.configured else command.takes
        usage = " ".join(f"fedddp {name} [OPTION ...] {takes}".split())
        super().__init__(f"fedddp {name}", usage, add_help=False, allow_abbrev=False, formatter_class=formatter)
        self._command = command
        command.options(self)
        about, nargs = ("this help; --help TOPIC as fedddp help TOPIC", "?") if command.configured else ("this help", 0)
        self.add_argument("-h", "--help", action=_Help, nargs=nargs, metavar="TOPIC", help=about)
        self.add_argument("--version", action="version", version=f"fedddp {__version__}", help="the version")

    @property
    def known(self) -> list[str]:
        """All options."""
        return [*self._option_string_actions]

    def format_help(self) -> str:
        command, formatter = self._command, self._get_formatter()
        formatter.add_usage(self.usage, (), ())
        formatter.add_text(f"{command.about[0].upper()}{command.about[1:]}. {command.more}".replace("%", "%%"))
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        parts = [formatter.format_help()]
        if command.configured:
            parts.append(CONFIGURATION)
        if command.keys:
            listed = keys.first(width()) if command.keys == "first" else keys.section(command.keys, width())
            parts.append(listed)
        if command.examples:
            parts.append("\n".join(("examples:", *(f"  {line}" for line in command.examples))))
        return "\n\n".join(part.rstrip() for part in [*parts, CODES])

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; {self.prog} --help describes it")

    def _print_message(self, message: str, file: Any = None) -> None:
        say(message)


class _Help(argparse.Action):
    """Print the help of the command, or of the topic that follows, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        say(described(values) if values else parser.format_help())
        parser.exit()
