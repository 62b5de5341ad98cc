"""Write fedddp/config/reference.json: every configuration key, read off the schema, for all who answer without torch.

    python -m tools.reference

Help, completion, ``fedddp schema`` and the page of configuration keys read it (`fedddp.cli.reference`).
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from fedddp.cli.reference import FILE
from fedddp.cli.sweep.grid import Settings
from fedddp.config import Config
from fedddp.data import DATASETS
from fedddp.registry.choice import Choice, fields_of

FIRST = {
    "run": ("run.name", "run.rounds", "run.seed", "run.device", "run.resume"),
    "data": ("data.name", "data.root", "data.partition.name", "data.partition.num_clients"),
    "model": ("model.name",),
    "clients": ("client.local_epochs", "client.batch_size", "client.optimizer.name", "client.optimizer.lr"),
    "cohort": ("cohort.size",),
    "algorithm": ("algorithm.name",),
    "evaluation": ("evaluate.every", "evaluate.target_accuracy"),
    "privacy": ("privacy.level", "privacy.target_epsilon", "privacy.secure_aggregation.enabled"),
}
"""The keys that a user sets first, by the group in which ``fedddp train --help`` shows them."""
GROUPS = {key: group for group, keys in FIRST.items() for key in keys}
TABLES = ("sections", "choices")
When = Mapping[str, tuple[str, ...]]
ALWAYS: When = {}


def build() -> dict[str, Any]:
    """The reference as plain values."""
    choices: dict[str, Any] = {}
    rows = [row for name in Config.model_fields for row in _entries(Config, name, "", Config(), choices=choices)]
    keys: dict[str, dict[str, Any]] = {}  # those of several choices that differ in nothing else are one
    for row in rows:
        same = keys.setdefault(json.dumps({**row, "when": sorted(row["when"])}), row)
        same["when"] = {at: list(dict.fromkeys([*same["when"][at], *names])) for at, names in row["when"].items()}
    for row in keys.values():  # what every name has depends on no name
        row["when"] = {at: names for at, names in row["when"].items() if len(names) < len(choices[at]["names"])}
    return {
        "sections": {name: _about(name) for name in Config.model_fields},
        "choices": choices,
        "keys": [_short(row) for row in keys.values()],
        "sweep": [_short(*_entries(Settings, name, "sweep.", Settings())) for name in fields_of(Settings)],
    }


def text() -> str:
    """The content of the file: JSON with a key, a choice, a section per line."""
    made = build()
    tables = (_part(part, [f'"{name}": {_json(row)}' for name, row in made[part].items()], "{}") for part in TABLES)
    lists = (_part(part, list(map(_json, made[part])), "[]") for part in ("keys", "sweep"))
    return "{" + ",\n".join([*tables, *lists]) + "}\n"


def _part(name: str, rows: list[str], brackets: str) -> str:
    return f'"{name}": {brackets[0]}\n  ' + ",\n  ".join(rows) + f"\n{brackets[1]}"


def _entries(
    cls: type, name: str, prefix: str, owner: Any, when: When = ALWAYS, choices: Any = None
) -> Iterator[dict[str, Any]]:
    """The keys of the field ``name`` of a section: one, or those of the section that it is."""
    key, choice, default = f"{prefix}{name}", fields_of(cls)[name], getattr(owner, name)
    if choice is not None:
        yield from _choice(key, choice, _described(cls, name), default, when, choices)
    elif isinstance(default, BaseModel):
        for inner in fields_of(type(default)):
            yield from _entries(type(default), inner, f"{key}.", default, when, choices)
    else:
        if key == "data.name":
            choices["data"] = {"default": default, "names": {name: _dataset(load) for name, load in DATASETS.items()}}
        yield _row(key, _schema(cls, name), default, _described(cls, name), when)


def _choice(
    key: str, choice: Choice, meaning: str, default: Any, when: When, choices: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The keys of every name; of a choice inside one of the same family only the name, the others are above."""
    outer = next((at for at in when if choice.registry.keys() <= choices[at]["names"].keys()), None)
    names = {name: _first(cls.__doc__) for name, cls in choice.registry.items()}
    choices[key] = {"default": choice.default["name"], "names": names, **({"like": outer} if outer else {})}
    meaning += f"; it has its keys after {key}" if outer else ""
    yield _row(f"{key}.name", {"type": "string"}, choice.default["name"], meaning, when)
    for name, cls in () if outer else choice.registry.items():
        owner = default if type(default) is cls else cls(**choice.given(name))
        for inner in fields_of(cls):
            yield from _entries(cls, inner, f"{key}.", owner, {**when, key: (name,)}, choices)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value not in (None, {}, "")}


def _row(key: str, schema: dict[str, Any], default: Any, meaning: str, when: When) -> dict[str, Any]:
    default = list(default) if isinstance(default, tuple) else default
    row = {"name": key, "type": schema, "default": default, "meaning": meaning, "when": dict(when)}
    return {**row, "first": GROUPS.get(key, "")}


def _schema(cls: type, name: str) -> dict[str, Any]:
    """JSON Schema of a field; None, which TOML does not have, is written "off"."""
    hint: Any = typing.get_type_hints(cls, include_extras=True)[name]
    if issubclass(cls, BaseModel):
        field = cls.model_fields[name]
        hint = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    schema = TypeAdapter(hint).json_schema()
    for extra in ("description", "title", "additionalProperties"):
        schema.pop(extra, None)
    for one in schema.get("anyOf", ()):
        if one == {"type": "null"}:
            one.update(type="string", enum=["off"])
    return schema


def _described(cls: type, name: str) -> str:
    """The description of a field of a section."""
    if issubclass(cls, BaseModel):
        return cls.model_fields[name].description or ""
    extras = typing.get_args(typing.get_type_hints(cls, include_extras=True)[name])[1:]
    return next((extra.description for extra in extras if isinstance(extra, FieldInfo) and extra.description), "")


def _dataset(load: Any) -> str:
    named = getattr(load, "class_name", "")
    return f"{named} of torchvision" if named else _first(inspect.getdoc(load))


def _about(name: str) -> str:
    about = _described(Config, name) or _first(type(getattr(Config(), name)).__doc__)
    return about[:1].lower() + about[1:]


def _first(text: str | None) -> str:
    """The first sentence of a docstring, on one line, as plain text."""
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    sentence = re.match(r".*?[a-z0-9)\"'`\]][.:](?= [A-Z`]|$)", paragraph)
    return (sentence[0] if sentence else paragraph).rstrip(".:").replace("``", "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
