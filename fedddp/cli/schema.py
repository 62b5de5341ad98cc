"""The JSON Schema of configuration files, by which editors complete and check them.

A section that is chosen by name may have the keys of that choice; of a class by import path, any.
"""

import json
from argparse import Namespace
from typing import Any

from .reference import Key, Reference, reference


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
        types = [{"enum": list(choice.names)}, {"type": "string", "pattern": "^[\\w.]+:[\\w.]+$"}]
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
        named = {"properties": {"name": {"const": name}}, "required": ["name"]}
        section.setdefault("allOf", []).append({"if": named, "then": {"propertyNames": {"enum": allowed}}})
