"""What there is to configure, without torch: read from a file that ``python -m tools.reference`` makes of the schema.

Importing the schema imports every model and algorithm, and with them torch, which takes seconds. Help, completion and
the schema for editors answer from config/reference.json instead; a test keeps it in step. `schema` is the JSON Schema
by which editors complete and check configuration files: a section that is chosen by name may have the keys of that
choice; of a class by import path, any.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FAMILY = ":"
"""Ends a name that stands for many: ``torchvision:``, of which ``torchvision:resnet18`` is one."""
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
class Alternatives:
    """A section that is chosen by name: the default, and what each name is; ``like`` names a choice with the keys."""

    default: str
    names: Mapping[str, str]
    like: str = ""


@dataclass(frozen=True)
class Reference:
    """All sections, choices and keys, in the order of the schema; ``sweep`` are the keys of a sweep's own section."""

    sections: Mapping[str, str]
    choices: Mapping[str, Alternatives]
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
    choices = {path: Alternatives(**choice) for path, choice in table["choices"].items()}
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


def answer(args: Namespace) -> str:
    """``fedddp schema``."""
    return json.dumps(schema(), indent=1)


def schema() -> dict[str, Any]:
    """The schema of a file of `fedddp train`, a part of a configuration."""
    known = reference()
    root: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    for name, about in known.sections.items():
        _at(root, name)["description"] = about
    for name in dict.fromkeys(key.name for key in known.keys):
        path, _, last = name.rpartition(".")
        _at(root, path)["properties"][last] = _property(known, [key for key in known.keys if key.name == name])
    for path in known.choices:
        _restrict(_at(root, path), known, path)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "fedddp configuration", **root}


def _at(root: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of the section at ``path``, made where it is not there yet."""
    for part in path.split("."):
        empty = {"type": "object", "properties": {}, "additionalProperties": False}
        root = root["properties"].setdefault(part, empty)
    return root


def _property(known: Reference, keys: list[Key]) -> dict[str, Any]:
    """The schema of a key; where several choices have one of this name, any of their types will do."""
    choice = known.choices.get(keys[0].name.removesuffix(".name"))
    types = [dict(key.type) for key in keys]
    if choice is not None and keys[0].name.endswith(".name"):
        single = [name for name in choice.names if not name.endswith(FAMILY)]
        patterns = ["^[\\w.]+:[\\w.]+$", *(f"^{name}." for name in choice.names if name.endswith(FAMILY))]
        types = [{"enum": single}, *({"type": "string", "pattern": pattern} for pattern in patterns)]
    types = [one for place, one in enumerate(types) if one not in types[:place]]
    made: dict[str, Any] = {"description": "; or: ".join(dict.fromkeys(key.meaning for key in keys if key.meaning))}
    if len(keys) == 1 and keys[0].default is not None:
        made["default"] = keys[0].default
    return {**made, **types[0]} if len(types) == 1 else {**made, "anyOf": types}


def _restrict(section: dict[str, Any], known: Reference, path: str) -> None:
    """Allow each name the keys that it has; of a class of the user's, and of a choice like another, any."""
    choice, keys = known.choices[path], known.below(path)
    section["additionalProperties"] = True
    for name in () if choice.like or path == "data" else choice.names:
        own = [key for key in keys if name in (key.had_by(path) or (name,))]
        allowed = list(dict.fromkeys(key.name.removeprefix(f"{path}.").split(".")[0] for key in own))
        value = {"pattern": f"^{name}"} if name.endswith(FAMILY) else {"const": name}
        named = {"properties": {"name": value}, "required": ["name"]}
        section.setdefault("allOf", []).append({"if": named, "then": {"propertyNames": {"enum": allowed}}})
