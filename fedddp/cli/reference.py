"""What there is to configure, without torch: read from a file that ``python -m tools.reference`` makes of the schema.

Importing the schema imports every model and algorithm, and with them torch, which takes seconds. Help, completion and
the schema for editors answer from config/reference.json instead; a test keeps it in step.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "config" / "reference.json"


@dataclass(frozen=True)
class Key:
    """A configuration key, as one or several choices have it.

    Attributes:
        name: the dotted key.
        type: JSON Schema of its values.
        meaning: a phrase or sentence.
        default: None if nothing is set by default.
        when: choice -> the names under which the key is there, for choices that do not always have it.
        first: the group in which ``fedddp train --help`` shows it; empty for keys that one sets later.
    """

    name: str
    type: Mapping[str, Any]
    meaning: str
    default: Any = None
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first: str = ""

    @property
    def kind(self) -> str:
        """The type as a reader writes it: ``int``, ``auto|cpu|cuda``, ``[float, ...]``."""
        return _kind(self.type)

    @property
    def shown(self) -> str:
        """The default as a configuration file has it; empty if there is none."""
        if self.default is None or self.default in ("", {}, []):
            return ""
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def had_by(self, choice: str) -> tuple[str, ...]:
        """The names of ``choice`` under which the key is there; empty for all."""
        return self.when.get(choice, ())

    @property
    def choice(self) -> str:
        """The innermost choice that decides whether the key is there; empty if there is none."""
        return max(self.when, key=len, default="")


@dataclass(frozen=True)
class Choice:
    """A section that is chosen by name: the default, and what each name is; ``like`` names a choice with the keys."""

    default: str
    names: Mapping[str, str]
    like: str = ""


@dataclass(frozen=True)
class Reference:
    """All sections, choices and keys, in the order of the schema; ``sweep`` are the keys of a sweep's own section."""

    sections: Mapping[str, str]
    choices: Mapping[str, Choice]
    keys: tuple[Key, ...]
    sweep: tuple[Key, ...]

    def below(self, section: str) -> tuple[Key, ...]:
        """The keys of a section and of the sections in it."""
        return tuple(key for key in (*self.keys, *self.sweep) if key.name.startswith(f"{section}."))

    def names(self, key: str) -> tuple[str, ...]:
        """The values that a key takes by name; empty where any number or text will do."""
        choice = self.choices.get(key.removesuffix(".name"))
        if choice is not None and key.endswith(".name"):
            return tuple(choice.names)
        types = [one.type for one in self.keys if one.name == key]
        return tuple(dict.fromkeys(name for schema in types for name in _values(schema)))


@cache
def reference() -> Reference:
    """The reference that comes with the package."""
    table = json.loads(FILE.read_text(encoding="utf-8"))
    choices = {path: Choice(**choice) for path, choice in table["choices"].items()}
    return Reference(table["sections"], choices, *(tuple(map(_key, table[part])) for part in ("keys", "sweep")))


def _key(row: Mapping[str, Any]) -> Key:
    return Key(**{**row, "when": {choice: tuple(names) for choice, names in row.get("when", {}).items()}})


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return "|".join(_kind(one) for one in schema["anyOf"])
    if schema["type"] == "array":
        return f"[{_kind(schema['items'])}, ...]"
    kinds = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "table"}
    return kinds[schema["type"]]


def _values(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from map(str, schema.get("enum", ()))
    for one in schema.get("anyOf", ()):
        yield from _values(one)
    if schema.get("type") == "boolean":
        yield from ("true", "false")
