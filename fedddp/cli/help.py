"""The parser of a command's options, and help: on all commands, on one, and on the keys of a configuration."""

import argparse
import os
import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from .. import __version__
from ..errors import UsageError
from ..registry.shipped import shipped, title
from ..registry.spelling import SHORT, suggestion
from .commands import COMMANDS, EXAMPLES, Command
from .reference import Key, Reference, reference

COLUMN = 34
"""Where meanings begin, unless a key is longer."""
IMPORTED = "or package.module:Class"
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


def first_keys(width: int) -> str:
    """The keys that a run sets first, by group, with their short forms."""
    short = {key: name for name, key in SHORT.items()}
    groups: dict[str, list[str]] = {}
    for name, keys in _by_name([key for key in reference().keys if key.first]).items():
        also = f"; also --{short[name]}" if name in short else ""
        brief = [replace(key, meaning=key.meaning.partition(". ")[0]) for key in keys]
        groups.setdefault(keys[0].first, []).extend(_row(brief, {}, width, also))
    return "\n".join(f"{group}\n" + "\n".join(rows) for group, rows in groups.items())


def keys_of_section(path: str, width: int, chosen: str = "") -> str:
    """A section with every key once; of a ``chosen`` name, only the keys that it has."""
    known = reference()
    fixed = {path: chosen} if chosen else {}
    keys = [key for key in known.below(path) if not chosen or chosen in (key.had_by(path) or (chosen,))]
    lines = [*_head(known, path, chosen, width), ""]
    if choice := known.choices.get(path):
        keys = [key for key in keys if key.name != f"{path}.name"]
        names = [*_names(choice.names, width), f"      {IMPORTED} [{choice.default}]"]
        lines += [f"  --{path}.name={chosen}", ""] if chosen else [f"  --{path}.name=NAME", *names, ""]
    for rows in _by_name(sorted(keys, key=lambda key: key.name.count("."))).values():
        lines += _row(rows, fixed, width)
    return "\n".join(lines).rstrip()


def single_key(name: str, width: int) -> str:
    """One key."""
    keys = _by_name(reference().keys)[name]
    return "\n".join(_row(keys, {}, width))


def _head(known: Reference, path: str, chosen: str, width: int) -> list[str]:
    of_name = (key.meaning for key in known.keys if key.name == f"{path}.name" and path in known.choices)
    about = known.choices[path].names[chosen] if chosen else known.sections.get(path) or next(of_name, "")
    title = f"{path}.{chosen}" if chosen else path
    return textwrap.wrap(f"{title}: {about}" if about else title, width)


def _names(names: Mapping[str, str], width: int) -> Iterator[str]:
    """The names of a choice, a line each."""
    wide = max(map(len, names)) + 2
    for name, about in names.items():
        yield f"      {name:{wide}}{textwrap.shorten(about, width - wide - 6, placeholder=' ...')}"


def _by_name(keys: Sequence[Key]) -> dict[str, list[Key]]:
    grouped: dict[str, list[Key]] = {}
    for key in keys:
        grouped.setdefault(key.name, []).append(key)
    return grouped


def _row(keys: Sequence[Key], fixed: Mapping[str, str], width: int, also: str = "") -> list[str]:
    """The lines of one key, of whose entries some choices have one and some another."""
    name, kinds = keys[0].name, dict.fromkeys(kind for key in keys for kind in key.kind.split("|"))
    choice = reference().choices.get(name.removesuffix(".name")) if name.endswith(".name") else None
    left = f"  --{name}={'NAME' if choice else '|'.join(kinds)}"
    meanings: dict[str, list[Key]] = {}
    for key in keys:
        meanings.setdefault(key.meaning, []).append(key)
    texts = [_told(meaning, having, fixed, len(meanings) > 1) for meaning, having in meanings.items()]
    texts = [f"{texts[0]}{also}", *texts[1:]]
    if choice is not None:
        texts = [f"{texts[0].rpartition(' [')[0] or texts[0]}: {', '.join(choice.names)} [{choice.default}]"]
    indent = " " * COLUMN
    wrapped = [line for text in texts for line in textwrap.wrap(text, width - COLUMN)]
    if len(left) < COLUMN - 1 and wrapped:
        left, wrapped = f"{left:{COLUMN}}{wrapped[0]}", wrapped[1:]
    return [left, *(indent + line for line in wrapped)]


def _told(meaning: str, keys: Sequence[Key], fixed: Mapping[str, str], several: bool) -> str:
    """A meaning, in front of it who has it, behind it the defaults."""
    having = [() if key.choice in fixed else key.had_by(key.choice) for key in keys]
    if len({key.shown for key in keys}) == 1:
        default, who = keys[0].shown, ", ".join(name for names in having for name in names)
    else:
        pairs = zip(keys, having, strict=True)
        default = "; ".join(f"{key.shown} {', '.join(names)}".strip() for key, names in pairs)
        who = ", ".join(name for names in having for name in names) if several else ""
    return (f"{who}: " if who else "") + meaning + (f" [{default}]" if default else "")


def answer(args: Namespace) -> str:
    """``fedddp help [TOPIC]``."""
    return described(" ".join(args.topic))


def configurations(args: Namespace) -> str:
    """``fedddp show configs``: the configurations that come with the package, with the first lines of their headers."""
    found = shipped()
    wide = max(map(len, found)) + 2
    lines = (f"{name:{wide}}{title(path)}" for name, path in found.items())
    return "\n".join(textwrap.fill(line, width(), subsequent_indent=" " * wide) for line in lines)


def described(topic: str) -> str:
    """Help on a topic: a command, a section, a choice, a key, or nothing in particular."""
    known, wide = reference(), width()
    if not topic:
        sections = "\n".join(f"  {name:14}{about}" for name, about in known.sections.items())
        return f"{overview()}\n\nsections of a configuration (fedddp help SECTION):\n{sections}"
    if topic in COMMANDS:
        return Parser(topic, COMMANDS[topic]).format_help()
    topic = SHORT.get(topic, topic) if topic not in known.sections else topic
    path, _, name = topic.rpartition(".")
    if path in known.choices and name in known.choices[path].names:
        return keys_of_section(path, wide, name)
    if any(key.name == topic for key in known.keys):
        return single_key(topic, wide)
    if known.below(topic):
        return keys_of_section(topic, wide)
    named = [at for at, choice in known.choices.items() if topic in choice.names and not choice.like]
    ending = dict.fromkeys(key.name for key in known.keys if key.name.endswith(f".{topic}"))
    if named or ending:
        found = [*(keys_of_section(at, wide, topic) for at in named), *(single_key(name, wide) for name in ending)]
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
            listed = first_keys(width()) if command.keys == "first" else keys_of_section(command.keys, width())
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
