"""From TOML files and tables to a configuration and back, with every mistake in a line."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from ..errors import UsageError
from ..registry.choice import dump, fields_of, keys_of, read_file, section_of, user_path
from ..registry.spelling import key_suggestion
from .plain import check_kept, check_plain, shortened
from .schema import Config

LARGEST_FILE = 10_000_000
"""Bytes of a TOML file."""
GIVE = "give a TOML file or --section.key=value"
LOOKS = "a TOML file has [run] on a line and below it rounds = 5"
Schema = TypeVar("Schema", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """One file's table."""
    try:
        content = read_file(user_path(path), LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        remedy = "a key has two dashes before it: --section.key=value" if "=" in str(path) else GIVE
        shown = shortened(str(path))
        shown = shown if shown.endswith(")") else shown[1:-1]  # a long one stays in quotes
        raise UsageError(f"{shown}: cannot be read ({reason}); {remedy}") from None
    if len(content) > LARGEST_FILE:
        raise UsageError(f"{path}: has more than {LARGEST_FILE:,} bytes; {GIVE}")
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))  # with or without a byte order mark
    except (ValueError, RecursionError) as error:  # of which TOMLDecodeError and UnicodeDecodeError are some
        raise UsageError(f"{path}: is not valid TOML: {str(error)[:200]}; {LOOKS}") from None
    check_plain(table)
    return table


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, table by table."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def build(*layers: Mapping[str, Any]) -> Config:
    """Merge and check. Raises UsageError with the first mistake."""
    table: dict[str, Any] = {}
    for layer in layers:
        for key in Config.model_fields.keys() & layer.keys():
            if isinstance(layer[key], bool | int | float | str | list):
                checked(Config, {key: layer[key]})  # raises, before another layer covers it
        table = merge(table, layer)
    return checked(Config, table)


def checked(schema: type[Schema], table: Mapping[str, Any]) -> Schema:
    """A table as its schema has it. Raises UsageError with the first mistake."""
    check_plain(table)
    try:
        made = schema.model_validate(table)
    except ValidationError as error:
        raise UsageError(_first_mistake(error, schema)) from None
    check_kept(table, dump(made))
    return made


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Tables whose keys may be dotted, as tables in tables."""
    table: dict[str, Any] = {}
    for key, value in flat.items():
        table = merge(table, within(key.split("."), nested(value) if isinstance(value, Mapping) else value))
    return table


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values, as TOML holds them."""
    return dump(config)


def chosen(config: Config, section: str) -> str:
    """What a section is, for messages: ``model.name='cnn'``."""
    key = f"{section}.name"
    return f"{key}={flatten(to_dict(config))[key]!r}"


def to_toml(config: Config, *, changed: bool = False) -> str:
    """A configuration as TOML, all keys or those that were ``changed``; reading it back gives the same."""
    return tomli_w.dumps(_changed(config) if changed else to_dict(config))


def _changed(config: Config) -> dict[str, Any]:
    """The smallest table that builds the same configuration: no key can be left out of it."""
    table = to_dict(config)
    for path in list(_paths(table)):
        smaller = _without(table, path)
        with suppress(UsageError):
            if build(smaller) == config:
                table = smaller
    return table


def _paths(table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys of a table and of the tables in it, outermost first."""
    for key, value in table.items():
        inner = [(key, *path) for path in _paths(value)] if isinstance(value, Mapping) else []
        yield from inner or [(key,)]


def _without(table: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """A table without the key at ``path``, nor tables that are empty then."""
    kept = _without(table[path[0]], path[1:]) if len(path) > 1 else {}
    return {key: kept if key == path[0] else value for key, value in table.items() if key != path[0] or kept}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def within(path: Sequence[str], value: Any) -> dict[str, Any]:
    """The table that holds only ``value``, at ``path``."""
    for key in reversed(path):
        value = {key: value}
    return value


def _first_mistake(error: ValidationError, schema: type) -> str:
    mistakes = list(_mistakes(error.errors(), (), schema))
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return mistakes[0] + more


def _mistakes(errors: Sequence[Any], prefix: tuple[str, ...], cls: type) -> list[str]:
    found = []
    for error in errors:
        path = (*prefix, *map(str, error["loc"]))
        context = error.get("ctx", {})
        key = ".".join(path)
        if error["type"] == "nested":
            found += _mistakes(context["errors"], path, context["cls"])
        elif error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = fields_of(_owner(cls, error["loc"][:-1]))
            near = key_suggestion(key, known, keys_of(Config))
            there = f"the keys here are {', '.join(known)}" if known else "this section has no keys"
            found.append(f"{key}: unknown key{near or '; ' + there}")
        elif error["type"] == "mistake":
            key = f"{key}.{context['at']}" if context["at"] else key
            found.append(f"{key}={shortened(context['value'])}: {context['reason']}")
        elif error["type"] in ("model_type", "model_attributes_type"):
            found.append(f"{key}={shortened(error['input'])}: expected a section; write {key}.<key>=value")
        else:
            message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
            message = message.replace("a valid tuple", 'a list, as ["a", "b"]')
            owner = _owner(cls, error["loc"])
            first_word = message.partition(" ")[0].partition("=")[0]
            if (is_dataclass(owner) or issubclass(owner, BaseModel)) and first_word in fields_of(owner):
                found.append(f"{key}.{message}")  # of a section as a whole, whose first word is the key
                continue
            shown = "" if isinstance(error["input"], dict | BaseModel) else f"={shortened(error['input'])}"
            found.append(f"{key}{shown}: {message}")
    return found


def _owner(cls: type, path: Sequence[Any]) -> type:
    for name in path:
        cls = section_of(cls, str(name)) or cls
    return cls
