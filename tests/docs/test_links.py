"""Every link inside the repository leads somewhere, and every page is in the site's navigation."""

import re

import pytest

from .pages import DOCS, PAGES, ROOT, anchors, links

GENERATED = {"configuration.md", "checks.md"}
"""Pages that the build of the site makes (tools/site.py). No page links to them: on GitHub they do not exist."""


def name_of(path):
    return str(path.relative_to(ROOT))


def faults(path):
    for target in links(path.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        there = path if not file else (path.parent / file).resolve()
        if not there.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(there.read_text()):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path):
    assert list(faults(path)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md) [b](#a-page) [c](other.md) [d](page.md#b) `[e](f.md)`\n")
    assert list(faults(page)) == ["other.md: no such file", "page.md#b: no such heading"]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"[\w.-]+\.md", navigation)
    assert sorted(listed) == sorted([*(path.name for path in DOCS.glob("*.md")), *GENERATED])


def test_readme_fits_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
