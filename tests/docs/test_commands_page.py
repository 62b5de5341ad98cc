"""docs/commands.md: the commands, short forms and messages are those of the program."""

import pytest

from fedddp.cli.commands import COMMANDS
from fedddp.cli.main import main
from fedddp.registry.spelling import SHORT

from .pages import DOCS, tables

TABLES = tables((DOCS / "commands.md").read_text())
LISTED, FORMS, _, MESSAGES = ({row[0].strip("`"): row[1].strip("`") for row in table[1:]} for table in TABLES)


def test_every_command_is_listed():
    listed = [line.removeprefix("fedddp ") for line in LISTED]
    assert [name for name in COMMANDS if not any(f"{line} ".startswith(f"{name} ") for line in listed)] == []


def test_every_short_form_is_listed():
    assert {f"--{form}": key for form, key in SHORT.items()} == FORMS


@pytest.mark.parametrize("words", MESSAGES)
def test_a_message_is_the_one_that_is_printed(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", words]) == 2
    assert capsys.readouterr().err == f"fedddp: {MESSAGES[words]}\n"
