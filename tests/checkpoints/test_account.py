"""The record of a party's account: what is changed, cut, reordered or another's is found, and a kill loses nothing."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from fedddp.checkpoints.account import AccountError, Record, read
from fedddp.checkpoints.durable import WriteError
from fedddp.checkpoints.lock import Busy
from fedddp.secure import Identity, IdentityError

RUN, OTHER = ("fedavg", "ab" * 32), ("second", "cd" * 32)


@pytest.fixture
def party(tmp_path):
    """Folder and key of a record with two releases of one run and one of another."""
    folder, key = tmp_path / "account", tmp_path / "keys" / "rank-0.key"
    key.parent.mkdir()
    Identity.new().save(key)
    with_lines(Record(folder, key))
    return folder, key


def with_lines(record):
    record.append(RUN, 1, "client", 0, ((1.5, 0.5, 1),))
    record.append(RUN, 2, "client", 1, ((1.5, 0.5, 2),))
    record.append(OTHER, 1, "client", 0, ((2.0, 1.0, 1),))
    record.release()


def lines_of(folder):
    return (folder / "account.jsonl").read_bytes().splitlines(keepends=True)


def write(folder, lines):
    (folder / "account.jsonl").write_bytes(b"".join(lines))


def test_a_record_says_what_each_run_released(party):
    history = read(*party)
    assert history.releases == {RUN: 2, OTHER: 1}
    assert history.spent == {RUN: ((1.5, 0.5, 2),), OTHER: ((2.0, 1.0, 1),)}
    assert (history.lines, history.level) == (3, "client")
    entry = json.loads(lines_of(party[0])[1])
    assert (entry["run"], entry["config"], entry["round"], entry["release"]) == (*RUN, 1, 2)
    assert party[0].stat().st_mode & 0o077 == 0


def test_what_an_earlier_line_has_and_a_later_one_has_not_still_counts(party):
    record = Record(*party)
    record.append(RUN, 3, "client", 2, ((1.5, 0.25, 9),))
    assert record.history.spent[RUN] == ((1.5, 0.5, 2), (1.5, 0.25, 9))
    record.release()
    assert read(*party) == record.history


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_change_of_any_character_is_found(party, number):
    folder, key = party
    lines = lines_of(folder)
    for at in range(0, len(lines[number]) - 1, 7):
        changed = bytearray(lines[number])
        changed[at] = ord("1") if changed[at] != ord("1") else ord("2")
        write(folder, [*lines[:number], bytes(changed), *lines[number + 1 :]])
        for check in (None, key):  # the chain alone shows it, too
            with pytest.raises(AccountError, match=f"line {number + 1} "):
                read(folder, check)


def test_a_record_cut_by_a_line_is_found_wherever_it_is_cut(party):
    folder, key = party
    lines = lines_of(folder)
    for number in range(3):
        write(folder, lines[:number] + lines[number + 1 :])
        with pytest.raises(AccountError, match=r"does not follow|was cut"):
            Record(folder, key)
    for kept in (0, 1, 2):  # at the end, where the chain alone is whole
        write(folder, lines[:kept])
        assert read(folder).lines == kept
        with pytest.raises(AccountError, match=f"has {kept} lines, not the 3 .* restore"):
            Record(folder, key)
    (folder / "account.jsonl").unlink()
    with pytest.raises(AccountError, match="has 0 lines, not the 3"):
        Record(folder, key)


def test_reordered_repeated_and_foreign_lines_are_found(party, tmp_path):
    folder, key = party
    first, second, third = lines_of(folder)
    for lines in ([first, third, second], [second, first, third], [first, second, second, third]):
        write(folder, lines)
        with pytest.raises(AccountError, match="does not follow the line before"):
            read(folder, key)
    Identity.new().save(tmp_path / "other.key")
    with_lines(Record(tmp_path / "elsewhere", tmp_path / "other.key"))
    write(folder, [first, second, lines_of(tmp_path / "elsewhere")[2]])
    with pytest.raises(AccountError, match="line 3 is signed by another key"):
        read(folder, key)


def test_a_replaced_key_is_found_and_a_replaced_record_too(party, tmp_path):
    folder, key = party
    Identity.new().save(tmp_path / "new.key")
    with pytest.raises(AccountError, match=r"is signed by the key \w{16}, not by .*new.key"):
        Record(folder, tmp_path / "new.key")
    (tmp_path / "forged").mkdir()
    with_lines(Record(tmp_path / "forged", tmp_path / "new.key"))
    write(folder, lines_of(tmp_path / "forged"))
    assert read(folder).lines == 3  # in itself it is sound: whose key it is has to be known
    with pytest.raises(AccountError, match="is signed by the key"):
        Record(folder, key)
    with pytest.raises(IdentityError, match="cannot read the key"):
        Record(folder, tmp_path / "none.key")


def test_what_lies_beside_the_key_is_needed(party):
    folder, key = party
    end = key.with_name("rank-0.key.account")
    for content in ("", "[]", '{"lines": 3}', '{"lines": 3, "last": "00"}', '{"lines": "3", "last": 0}'):
        end.write_text(content)
        with pytest.raises(AccountError, match=r"rank-0\.key\.account"):
            Record(folder, key)
    end.unlink()
    with pytest.raises(AccountError, match="not the 0 of which"):
        Record(folder, key)


def test_one_key_does_not_sign_two_records(party, tmp_path):
    with pytest.raises(AccountError, match="or is another record"):
        Record(tmp_path / "second", party[1])


@pytest.mark.parametrize("kept", [0, 2])
def test_a_kill_between_a_line_and_what_lies_beside_the_key_is_no_cut(party, kept):
    folder, key = party
    end, lines = key.with_name("rank-0.key.account"), lines_of(folder)
    write(folder, lines[:kept])
    end.unlink()
    if kept:
        known = {"lines": kept, "last": json.loads(lines[kept])["previous"]}
        end.write_text(json.dumps(known))
    write(folder, lines[: kept + 1])
    record = Record(folder, key)
    assert record.history.lines == kept + 1
    assert json.loads(end.read_text())["lines"] == kept + 1  # it has caught up
    record.append(RUN, 9, "client", 8, ())
    record.release()
    assert read(folder, key).lines == kept + 2


def test_a_line_cut_short_by_a_kill_was_not_released_and_goes(party, logged):
    folder, key = party
    before = lines_of(folder)
    write(folder, [*before, before[2][:50]])
    assert read(folder, key).lines == 3
    record = Record(folder, key)
    assert lines_of(folder) == before
    assert any("cut short" in line for line in logged)
    record.append(OTHER, 2, "client", 1, ((2.0, 1.0, 2),))
    record.release()
    assert read(folder, key).releases[OTHER] == 2


def test_a_line_is_on_disk_before_the_release(party, monkeypatch):
    folder, key = party
    record, on_disk, really = Record(folder, key), [], os.fsync

    def fsync(descriptor):
        on_disk.append((os.fstat(descriptor).st_ino, len(lines_of(folder))))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    record.append(OTHER, 2, "client", 1, ())
    assert on_disk[0] == ((folder / "account.jsonl").stat().st_ino, 4)
    record.release()


def test_a_full_disk_ends_the_run_before_the_release_and_spoils_nothing(party, monkeypatch):
    folder, key = party
    record = Record(folder, key)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"no space left for the account .*; the run ends before the release"):
        record.append(OTHER, 2, "client", 1, ())
    monkeypatch.undo()
    record.release()
    assert Record(folder, key).history.lines == 4  # ahead, not behind


def test_another_program_that_writes_the_record_ends_the_run(party):
    folder, key = party
    record = Record(folder, key)
    write(folder, lines_of(folder)[:2])
    with pytest.raises(WriteError, match="was changed by another program"):
        record.append(OTHER, 2, "client", 1, ())
    record.release()


HOLDER = """
import sys
from pathlib import Path
from fedddp.checkpoints.account import Record
record = Record(Path(sys.argv[1]), Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_waits_its_turn_and_a_killed_one_leaves_no_lock(party):
    command = [sys.executable, "-c", HOLDER, *map(str, party)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {other.pid}"):
            Record(*party)
        other.send_signal(signal.SIGKILL)
        other.wait()
    Record(*party).release()
