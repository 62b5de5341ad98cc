"""fedddp show account: what was spent by which runs, and 1 for a record that was changed or cut."""

import re

import pytest

from fedddp.checkpoints.account import Record
from fedddp.privacy import compose_runs
from fedddp.secure import Identity
from tests.helpers.commands import command

pytest.importorskip("opacus")
show = command("show account")
SPENT = [((2.0, 0.5, 3),), ((1.0, 0.2, 5), (1.0, 0.01, 40))]


@pytest.fixture
def account(tmp_path):
    Identity.new().save(tmp_path / "rank-0.key")
    record = Record(tmp_path / "account", tmp_path / "rank-0.key")
    for name, spent in zip(("first", "second"), SPENT, strict=True):
        record.append((name, "ab" * 32), 3, "example", 2, spent)
    record.release()
    return tmp_path / "account"


def test_it_prints_every_run_and_all_of_them(account, capsys):
    assert show([str(account), f"--key={account.parent / 'rank-0.key'}", "--delta=1e-6"]) == 0
    text = capsys.readouterr().out
    for name, runs in (("first", SPENT[:1]), ("second", SPENT[1:]), ("all", SPENT)):
        assert re.search(rf"{name} .*[ │]{compose_runs(runs, 1e-6):.4g} ", text)
    assert "2 lines, unchanged and in order" in text
    assert "none is missing" in text


def test_without_the_key_it_does_not_say_that_the_end_is_whole(account, capsys):
    path = account / "account.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert show([str(account)]) == 0
    assert "only --key=FILE can tell" in capsys.readouterr().out
    assert show([str(account), f"--key={account.parent / 'rank-0.key'}"]) == 1
    assert "it was cut" in capsys.readouterr().err


def test_a_changed_record_and_what_is_none_end_in_one_line(account, capsys):
    path = account / "account.jsonl"
    assert show([str(account), "--delta=2"]) == 2
    assert capsys.readouterr().err == "fedddp: --delta: delta must be between 0 and 1, not 2\n"
    path.write_text(path.read_text().replace("first", "other"))
    assert show([str(account)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedddp: {path}: line 1 was changed")
    assert show([str(account.parent)]) == 2
    assert show([str(account), f"--key={account / 'none'}"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
