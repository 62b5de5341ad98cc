"""``--help``: every key with its type, default and meaning, read off the schema."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..registry.choice import Choice, fields_of
from .schema import Config

USAGE = """\
usage: torchrun --nproc_per_node=4 -m fedddp.train [FILE.toml ...] [--section.key=value ...]
       python -m fedddp.train [...]                       (one rank)

Federated learning as a torch.distributed program: each rank hosts clients, one all_reduce a round is the server.
Files merge left to right, then overrides. Without any: embedded MNIST digits, one client a rank.

  --help           this text
  --print-config   the resolved configuration as TOML, and exit
  --version        the version, and exit

exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted (go on with --run.resume=auto)
"""


def text() -> str:
    """The whole help text."""
    rows = list(_section(Config, "", Config()))
    wide = max(len(key) + len(kind) for key, kind, _, _ in rows) + 2
    lines, before = [USAGE], ""
    for key, kind, default, meaning in rows:
        section = key.split(".")[0]
        if section != before:
            lines.append(f"{section}")
            before = section
        shown = f" [{default}]" if default else ""
        lines.append(f"  --{key}={kind}".ljust(wide + 6) + meaning + shown)
    return "\n".join(lines)


def _section(
    cls: type, prefix: str, defaults: Any, family: Mapping[str, type] | None = None
) -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, choice in fields_of(cls).items():
        default = getattr(defaults, name)
        if choice is not None:
            within = family is not None and choice.registry.items() <= family.items()
            yield from _nested(choice, f"{prefix}{name}.") if within else _choice(choice, f"{prefix}{name}.", default)
        elif isinstance(default, BaseModel):
            yield from _section(type(default), f"{prefix}{name}.", default)
        else:
            yield prefix + name, _kind(hints[name]), _shown(default), _meaning(cls, name, hints[name])


def _choice(choice: Choice, prefix: str, default: Any) -> Iterator[tuple[str, str, str, str]]:
    names = ", ".join(choice.registry)
    yield prefix + "name", "str", str(choice.default["name"]), f"{names}, or package.module:Class"
    rows: dict[tuple[str, str, str, str], list[str]] = {}  # to the names that have it
    for name, cls in choice.registry.items():
        chosen = default if type(default) is cls else cls(**choice.given(name))
        for row in _section(cls, prefix, chosen, choice.registry):
            rows.setdefault(row, []).append(name)
    for (key, kind, value, meaning), having in rows.items():
        where = "" if len(having) == len(choice.registry) else f"{', '.join(having)}: "
        yield key, kind, value, where + meaning


def _nested(choice: Choice, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """A choice inside one of the same family: the keys are those above, one level down."""
    names = ", ".join(choice.registry)
    keys = f"{names}, or package.module:Class, with its keys beside this one"
    yield prefix + "name", "str", str(choice.default["name"]), keys


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"[{_kind(typing.get_args(hint)[0])}, ...]"
    options = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if options and typing.get_origin(hint) is not dict:
        return "|".join(_kind(option) for option in options)
    return getattr(typing.get_origin(hint) or hint, "__name__", str(hint))


def _shown(default: Any) -> str:
    if default is None or default in ("", {}, ()):
        return ""
    if isinstance(default, tuple):
        return str(list(default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _meaning(cls: type, name: str, hint: Any) -> str:
    if issubclass(cls, BaseModel):
        return cls.model_fields[name].description or ""
    assert dataclasses.is_dataclass(cls)
    extras = typing.get_args(hint)[1:]
    return next((e.description for e in extras if isinstance(e, FieldInfo) and e.description), "")
