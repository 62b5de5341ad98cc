"""Hooks of mkdocs (see mkdocs.yml): write the page of configuration keys, and adapt pages to the site."""

from __future__ import annotations

import dataclasses
import logging
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedddp.config import Config
from fedddp.registry.choice import Choice, fields_of

ROOT = Path(__file__).parents[1]
log = logging.getLogger("mkdocs.hooks")
PAGE = "configuration.md"
INTRODUCTION = """\
# Configuration keys

Every key of a run, generated from the schema in `fedddp/config/schema.py`. Set a key with `--section.key=value`, in a
TOML file, or in Python (`fedddp.run({"section.key": value})`). A section that is chosen by `name` has the keys of that
choice; `package.module:Class` names a class of yours ([Extending](extending.md)). `off` unsets an optional key.
"""
HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"
OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
OPTIONS = re.compile(r"(?<=\| )`--[^`|]* --[^`|]*`(?= \|)")
Row = tuple[str, str, str, str]


def on_files(files: Any, config: Any) -> Any:
    """Add the generated page to the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=configuration()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to files outside docs/, which the site does not hold, by names; an option per line in tables."""
    return OPTIONS.sub(lambda cell: cell[0].replace(" --", "`<br>`--"), OUTSIDE.sub(_as_name, markdown))


def _as_name(link: re.Match[str]) -> str:
    text, target = link[1], link[2].removeprefix("../")
    if not (ROOT / target).exists():
        log.warning("a page links to %s, which does not exist", link[2])
    name = f"`{target}`"
    plain = text.strip("`")
    return name if plain and target.rstrip("/").endswith(plain.rstrip("/")) else f"{text} ({name})"


def configuration() -> str:
    """The page of configuration keys, in Markdown."""
    sections = (_section(name, type(getattr(Config(), name))) for name in Config.model_fields)
    return INTRODUCTION + "".join(sections)


def _section(name: str, cls: type) -> str:
    choice = fields_of(Config)[name]
    if choice is not None:
        return f"\n## {name}\n\n" + _choice(f"{name}.", choice)
    plain = "".join(map(_line, _rows(cls, f"{name}.", getattr(Config(), name))))
    chosen = "".join(f"\n### {prefix[:-1]}\n\n" + _choice(prefix, inner) for prefix, inner in _choices(cls, f"{name}."))
    return f"\n## {name}\n\n" + (HEADER + plain if plain else "") + chosen


def _rows(cls: type, prefix: str, defaults: Any) -> Iterator[Row]:
    """The keys of a section and of the sections inside it, but for those that are chosen by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, choice in fields_of(cls).items():
        default = getattr(defaults, name)
        if isinstance(default, BaseModel):
            yield from _rows(type(default), f"{prefix}{name}.", default)
        elif choice is None:
            yield prefix + name, _kind(hints[name]), _shown(default), _meaning(cls, name, hints[name])


def _choices(cls: type, prefix: str) -> Iterator[tuple[str, Choice]]:
    """The sections chosen by name inside a section, each with its prefix."""
    for name, choice in fields_of(cls).items():
        section = cls.model_fields[name].annotation if issubclass(cls, BaseModel) else None
        if choice is not None:
            yield f"{prefix}{name}.", choice
        elif isinstance(section, type) and issubclass(section, BaseModel):
            yield from _choices(section, f"{prefix}{name}.")


def _choice(prefix: str, choice: Choice) -> str:
    """The names that a section can be given, and the keys that each has."""
    names = ", ".join(f"`{name}`" for name in choice.registry)
    text = HEADER + _line((f"{prefix}name", "str", str(choice.default["name"]), f"{names}, or `package.module:Class`"))
    rows: dict[Row, list[str]] = {}
    inner: dict[str, Choice] = {}
    for name, cls in choice.registry.items():
        for row in _rows(cls, prefix, cls(**choice.given(name))):
            rows.setdefault(row, []).append(f"`{name}`")
        inner |= dict(_choices(cls, prefix))
    for (key, kind, shown, meaning), having in rows.items():
        only = "" if len(having) == len(choice.registry) else f"{', '.join(having)}: "
        text += _line((key, kind, shown, only + meaning))
    for key, chosen in inner.items():
        if chosen.registry.items() <= choice.registry.items():
            others = ", ".join(f"`{name}`" for name in chosen.registry)
            text += _line((f"{key}name", "str", str(chosen.default["name"]), f"{others}, with its keys after `{key}`"))
        else:
            text += f"\n#### {key[:-1]}\n\n" + _choice(key, chosen)
    return text


def _line(row: Row) -> str:
    key, kind, default, meaning = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in row)
    return f"| `{key}` | {kind} | {f'`{default}`' if default else ''} | {meaning} |\n"


def _kind(hint: Any) -> str:
    """A type as a reader of a configuration file writes it."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(hint) in (tuple, list):
        return f"list of {_kind(arguments[0])}"
    options = [argument for argument in arguments if argument is not type(None)]
    if options and typing.get_origin(hint) is not dict:
        return " or ".join(map(_kind, options))
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
    return next((e.description for e in typing.get_args(hint)[1:] if isinstance(e, FieldInfo) and e.description), "")
