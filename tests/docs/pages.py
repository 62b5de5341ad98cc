"""Reading Markdown pages: blocks of code, tables, links, anchors; and a folder to run their code in."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of one's own on the path, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def blocks(text, language):
    """The fenced blocks of a language; the empty one is the shell."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for said, block in fenced if said == language]


def without_code(text):
    """A page without what is code in it."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def tables(text):
    """The tables of a page, each a list of rows of cells, headers included."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
        elif rows:
            found.append([row for row in rows if not set("".join(row)) <= set("-: ")])
            rows = []
    return found


def links(text):
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text):
    """What a link to a heading of the page may name: the headings as mkdocs and GitHub write them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def words(command):
    """A shell command as a list of words, continued lines joined, without its comment."""
    return shlex.split(command.replace("\\\n", " "), comments=True)
