"""docs/privacy.md and its Chinese translation stay in step."""

import re

from .pages import DOCS, blocks, links, tables

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
