"""docs/privacy.md and its Chinese translation stay in step, and the tests that they cite exist."""

import re

import pytest

from .pages import DOCS, ROOT, blocks, links, tables

ENGLISH, CHINESE = (DOCS / "privacy.md").read_text(), (DOCS / "privacy.zh.md").read_text()


def keys(text):
    """The configuration keys that a text names."""
    return set(re.findall(r"`(?:--)?((?:privacy|aggregation|data|run)\.[a-z_.]+)", text))


def code(text):
    return [re.sub(r" *#.*", "", block) for block in blocks(text, "")]


def test_the_tables_have_the_same_shape():
    english, chinese = tables(ENGLISH), tables(CHINESE)
    assert [len(table) for table in english] == [len(table) for table in chinese]
    assert [len(row) for table in english for row in table] == [len(row) for table in chinese for row in table]


def test_the_tables_name_the_same_purposes_and_levels():
    def first(text):
        return [re.findall(r"`([^`]+)`", row[0]) for table in tables(text) for row in table]

    assert first(ENGLISH) == first(CHINESE)


def test_both_name_the_same_keys_commands_and_pages():
    assert keys(ENGLISH) == keys(CHINESE)
    assert code(ENGLISH) == code(CHINESE)
    assert {link for link in links(ENGLISH) if "privacy" not in link} == {
        link for link in links(CHINESE) if "privacy" not in link
    }


def cited(text):
    """The tests that stand below the first table, by number: file and a word of their names."""
    found = re.findall(r"(\d+)\s`([\w/]+\.py)(?: -k (\w+))?`", text[: text.index("## 1. ")])
    return {int(number): (file, word) for number, file, word in found}


@pytest.mark.parametrize(("text", "untested"), [(ENGLISH, "not tested"), (CHINESE, "未测试")], ids=["en", "zh"])
def test_every_cell_of_who_can_do_what_cites_a_test_that_exists(text, untested):
    cells = [cell for row in tables(text)[0][1:] for cell in row[1:]]
    numbers = [re.findall(r"\((\d+(?:, \d+)*)\)", cell) for cell in cells]
    assert all(found or untested in cell for found, cell in zip(numbers, cells, strict=True))
    used = {int(number) for found in numbers for group in found for number in group.split(", ")}
    assert used == set(cited(text)) == set(range(1, len(used) + 1))
    for file, word in cited(text).values():
        assert re.search(rf"^def test_\w*{word}", (ROOT / "tests" / file).read_text(), re.MULTILINE), (file, word)


def test_both_pages_cite_the_same_tests_in_the_same_cells():
    assert cited(ENGLISH) == cited(CHINESE)
    cells = [
        [re.findall(r"\(([\d, ]+)\)", cell) for row in tables(page)[0] for cell in row] for page in (ENGLISH, CHINESE)
    ]
    assert cells[0] == cells[1]
