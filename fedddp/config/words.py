"""The words of a command line that are a configuration: files, names of shipped ones, and keys with values."""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..registry.choice import keys_of
from ..registry.shipped import located, shipped
from ..registry.spelling import SHORT, key_suggestion, plain, suggestion
from .load import merge, read_toml, within
from .plain import DEEPEST, Decimals, Digits, shortened
from .schema import Config

OPTIONS = ("--help", "--print-config", "--version")
FILES = (".toml", ".yaml", ".yml", ".json")
BARE = re.compile(r"[a-z][\w-]*(\.\w+)*=")
"""A key without dashes: ``algorithm.name=fedprox``."""


@dataclass
class Request:
    """A parsed command line.

    Attributes:
        files: the files that it names.
        overrides: the table of its keys.
        meant: short forms that it uses -> the keys that they stand for.
    """

    files: list[Path] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    meant: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[dict[str, Any], ...]:
        """The tables of the files, then the overrides. Raises UsageError for a file that cannot be read."""
        return (*map(read_toml, self.files), self.overrides)

    @property
    def short(self) -> str:
        """What the short forms stand for, in a line; empty if there are none."""
        return ", ".join(f"--{form} stands for --{key}" for form, key in self.meant.items())


def parse(argv: Sequence[str], options: Sequence[str] = OPTIONS) -> Request:
    """Read files and overrides.

    Args:
        argv: words: files, names of shipped configurations, ``--section.key=value``, ``--section.key value``, the same
            without dashes, short forms.
        options: other options of the program, for suggestions.

    Raises:
        UsageError: a word is none of these.
    """
    request = Request()
    words = [word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for word in argv]
    while words:
        word = words.pop(0)
        if word.startswith("--") or (BARE.match(word) and not os.path.exists(word)):
            key, equals, text = word.removeprefix("--").partition("=")
            if not equals:
                _check_takes_value(word, key, words, options)
                text = words.pop(0)
            _check_key(word, key, text, options)
            value = _value(text)
            path = full(key, value)
            if path != key:
                request.meant[key] = path
            request.overrides = merge(request.overrides, within(path.split("."), value))
        else:
            request.files.append(_file(word, words, options))
    return request


def full(key: str, value: Any = "") -> str:
    """The key that a short form stands for: ``lr``, or a section that is given a bare name."""
    short = {plain(form): meant for form, meant in SHORT.items()}
    if key in named_sections():
        return f"{key}.name" if isinstance(value, str) else key
    return short.get(plain(key), key) if "." not in key else key


@cache
def named_sections() -> frozenset[str]:
    """The sections that are chosen by name."""
    names = (key.removesuffix(".name") for key, _ in keys_of(Config) if key.endswith(".name"))
    return frozenset(names) - {"run"}


def _check_takes_value(word: str, key: str, rest: Sequence[str], options: Sequence[str]) -> None:
    """Raise UsageError unless a word without "=" is a key that the next word gives a value."""
    if "." not in key and full(key) == key:
        _check_no_file(word, rest)
        near = _near_option(word, options) or key_suggestion(key, Config.model_fields, keys_of(Config))
        raise UsageError(f"{word}: unknown option; keys are given as --section.key=value{near}")
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"{word}: has no value; write --{full(key)}=value")


def _check_key(word: str, key: str, text: str, options: Sequence[str]) -> None:
    if "." not in key:
        _check_no_file(word, [text])
        known = full(key) != key or key_suggestion(key, Config.model_fields, keys_of(Config))
        if not known and (near := _near_option(f"--{key}", options)):
            raise UsageError(f"--{key}: unknown option{near}")
    if key.count(".") > DEEPEST:
        raise UsageError(f"--{shortened(key)}: unknown key; no key has so many parts")


def _check_no_file(word: str, rest: Sequence[str]) -> None:
    """Raise UsageError if a word that is no key stands in front of a file."""
    if rest and rest[0].endswith(FILES):
        raise UsageError(f"{word}: unknown option; a TOML file is named by itself, without an option before it")


def _file(word: str, rest: Sequence[str], options: Sequence[str]) -> Path:
    """The file that a word names. Raises UsageError for words that look like something else."""
    path, keys = located(word), {key for key, _ in keys_of(Config)} | named_sections()
    if word.endswith(FILES[1:]):
        raise UsageError(
            f"{word}: configurations are TOML files; write rounds = 5 below a line [run], or --run.rounds=5"
        )
    if os.path.exists(path):
        return path
    if word.startswith("-"):
        _check_no_file(word, rest)
        known = full(word.removeprefix("-").partition("=")[0]) in keys
        near = f"; did you mean '-{word}'?" if known else _near_option(f"-{word}", options)
        raise UsageError(f"{word}: unknown option; keys are given as --section.key=value{near}")
    if full(word) in keys:
        raise UsageError(f"{word}: is a key, and needs a value; write --{full(word)}=value")
    name = word.removesuffix(".toml").removeprefix("configs/").rstrip("/")
    if inside := [other for other in shipped() if other.startswith(f"{name}/")]:
        raise UsageError(f"{word}: no such file; the configurations of this name are {', '.join(inside)}")
    if near := suggestion(name, shipped()):
        raise UsageError(f"{word}: no such file{near} fedddp show configs lists those that come with the package")
    return path


def _near_option(word: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.7)
    return f"; did you mean '{near[0]}'?" if near else ""


def _value(text: str) -> Any:
    """A TOML value where the text is one, else the text itself (so that names need no quotes).

    A number remembers how it was written: where it turns out to be a name, ``1e3`` is not ``1000.0``.
    """
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):  # TOMLDecodeError, or a number of thousands of digits
        return {"True": True, "False": False}.get(text, text)
    if type(value) in (int, float) and str(value) != text:
        return Digits(value, text) if isinstance(value, int) else Decimals(value, text)
    return value if isinstance(value, bool | int | float | str | list | dict) else text  # no key takes a date
