"""Configuration keys as text for a terminal: those set first, a section, a choice, one key."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..registry.spelling import SHORT
from .reference import Key, Reference, reference

COLUMN = 34
"""Where meanings begin, unless a key is longer."""
IMPORTED = "or package.module:Class"


def first(width: int) -> str:
    """The keys that a run sets first, by group, with their short forms."""
    short = {key: name for name, key in SHORT.items()}
    groups: dict[str, list[str]] = {}
    for name, keys in _by_name([key for key in reference().keys if key.first]).items():
        also = f"; also --{short[name]}" if name in short else ""
        brief = [replace(key, meaning=key.meaning.partition(". ")[0]) for key in keys]
        groups.setdefault(keys[0].first, []).extend(_row(brief, {}, width, also))
    return "\n".join(f"{group}\n" + "\n".join(rows) for group, rows in groups.items())


def section(path: str, width: int, chosen: str = "") -> str:
    """A section with every key once; of a ``chosen`` name, only the keys that it has."""
    known = reference()
    fixed = {path: chosen} if chosen else {}
    keys = [key for key in known.below(path) if not chosen or chosen in (key.had_by(path) or (chosen,))]
    lines = [*_head(known, path, chosen, width), ""]
    choice = known.choices.get(path)
    if choice is not None and not chosen:
        keys = [key for key in keys if key.name != f"{path}.name"]
        lines += [f"  --{path}.name=NAME", *_names(choice.names, width), f"      {IMPORTED} [{choice.default}]", ""]
    elif chosen:
        keys = [key for key in keys if key.name != f"{path}.name"]
        lines += [f"  --{path}.name={chosen}", ""]
    for rows in _by_name(sorted(keys, key=lambda key: key.name.count("."))).values():
        lines += _row(rows, fixed, width)
    return "\n".join(lines).rstrip()


def single(name: str, width: int) -> str:
    """One key."""
    keys = _by_name(reference().keys)[name]
    return "\n".join(_row(keys, {}, width))


def sections() -> str:
    """The sections of a configuration, a line each."""
    return "\n".join(f"  {name:14}{about}" for name, about in reference().sections.items())


def _head(known: Reference, path: str, chosen: str, width: int) -> list[str]:
    about = known.choices[path].names[chosen] if chosen else known.sections.get(path) or _meaning(known, path)
    title = f"{path}.{chosen}" if chosen else path
    return textwrap.wrap(f"{title}: {about}" if about else title, width)


def _meaning(known: Reference, path: str) -> str:
    return next((key.meaning for key in known.keys if key.name == f"{path}.name" and path in known.choices), "")


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
