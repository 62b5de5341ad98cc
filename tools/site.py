"""Hooks of mkdocs (see mkdocs.yml): write the pages of configuration keys and checks, and adapt pages to the site."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from fedddp.cli.reference import Key, Reference, reference
from fedddp.setup.checks import GROUPS, Check

ROOT = Path(__file__).parents[1]
log = logging.getLogger("mkdocs.hooks")
PAGE, CHECKS = "configuration.md", "checks.md"
INTRODUCTION = """\
# Configuration keys

Every key of a run, generated from the schema in `fedddp/config/schema.py`. Set a key with `--section.key=value`, in a
TOML file, or in Python (`fedddp.run({"section.key": value})`). A section that is chosen by `name` has the keys of that
choice; `package.module:Class` names a class of yours ([Extending](extending.md)). `off` unsets an optional key.
`fedddp help SECTION` prints a part of this page; [Commands](commands.md#short-forms) has the short forms.
"""
ABOUT_CHECKS = """\
# Checks

The combinations of keys that cannot run, generated from `fedddp/setup/checks` in the order in which they are checked:
before the ranks connect and before anything is written. A run that is refused ends with exit code 2 and one line: the
first key with its value, the reason and the remedy. In Python it raises `fedddp.UsageError` with `code` and first key
(`key`) of the row. Words in italics stand for values of the run.
"""
HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"
OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
KEYS = re.compile(r"Configuration keys(?= \(`fedddp help ?(\w*)`\))")
"""Where a page names the generated page, which only the site has, and the command that prints the same."""
OPTIONS = re.compile(r"(?<=\| )`--[^`|]* --[^`|]*`(?= \|)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=configuration()))
    files.append(File.generated(config, CHECKS, content=checks()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Adapt a page: names for links out of docs/, a link to the page of configuration keys, an option per line."""
    markdown = KEYS.sub(lambda here: f"[{here[0]}]({PAGE}{'#' * bool(here[1])}{here[1]})", markdown)
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
    known = reference()
    text = INTRODUCTION
    for section, about in known.sections.items():
        text += f"\n## {section}\n\n{about[0].upper()}{about[1:]}.\n\n"
        owners = dict.fromkeys(key.name.rpartition(".")[0] for key in known.below(section))
        for owner in sorted(owners, key=lambda path: path.count(".")):
            heading = f"\n### {owner}\n\n" if owner != section else ""
            keys = (key for key in known.below(section) if key.name.rpartition(".")[0] == owner)
            text += heading + HEADER + "".join(_line(known, key) for key in keys)
    return text


def _line(known: Reference, key: Key) -> str:
    """A key as a row of the table."""
    choice = known.choices.get(key.name.removesuffix(".name")) if key.name.endswith(".name") else None
    names = ", ".join(f"`{name}`" for name in choice.names) + ", or `package.module:Class`" if choice else ""
    who = ", ".join(f"`{name}`" for name in key.had_by(key.choice))
    default = f"`{choice.default if choice else key.shown}`" if choice or key.shown else ""
    meaning = ": ".join(filter(None, (who, key.meaning, names)))
    row = (f"`{key.name}`", key.kind.replace("|", " or "), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |\n"


def checks() -> str:
    """The page of the checks across keys, in Markdown."""
    text = ABOUT_CHECKS
    for group, rows in GROUPS.items():
        text += f"\n## {group}\n\n| code | keys | why it cannot run | remedy |\n|---|---|---|---|\n"
        text += "".join(map(_row, rows))
    return text


def _row(check: Check[Any]) -> str:
    """A check as a row of the table."""
    keys = ", ".join(f"`{key}`" for key in check.keys)
    return f"| `{check.code}` | {keys} | {check.reason.format_map(_Names())} | {check.remedy.format_map(_Names())} |\n"


class _Names(dict[str, Any]):
    """For each placeholder its name, whatever its format."""

    def __missing__(self, name: str) -> _Name:
        return _Name(name)


class _Name(str):
    def __format__(self, spec: str) -> str:
        return "*" + self + "*"
