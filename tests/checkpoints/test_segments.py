"""fedddp.checkpoints.segments: a checkpoint writes the client states that changed, and holds all of them."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from fedddp.checkpoints import segments
from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.checkpoints.durable import WriteError
from fedddp.checkpoints.saved import newest
from fedddp.clients import ClientStore
from fedddp.comm import Comm
from fedddp.types import ServerState
from tests.helpers.support import flat

CLIENTS = 20


def kept_in(folder, *, keep=2, done=0, every=1):
    return Checkpoints(folder, {}, Comm.alone(), every=every, keep=keep, stateful=True, done=done)


def change(store, ids, value):
    new = {"c": torch.zeros(1, 50)}
    store.get(ids, new)
    store.put(ids, {"c": torch.full((len(ids), 50), float(value))}, range(len(ids)))
    store.put_common({"all of them": torch.tensor([float(value)])})
    store.commit()


class Run:
    """Rounds in which some clients take part, the first in which all do; ``states`` is what they remember then."""

    def __init__(self, folder, **more):
        self.folder, self.store, self.round = folder, ClientStore(), more.get("done", 0)
        self.checkpoints = kept_in(folder, **more)
        self.states = {}

    def rounds(self, *cohorts):
        for ids in cohorts:
            self.round += 1
            change(self.store, ids, 100 * self.round)
            self.states |= dict.fromkeys(ids, 100.0 * self.round)
            server = ServerState(torch.full((3,), float(self.round)), flat(3), {}, self.round)
            self.checkpoints.after_round(server, self.store, None, last=False)
            self.checkpoints.wait()
        return self

    def files(self):
        folder = self.folder / "checkpoints" / f"round-{self.round:06d}"
        return {path.name: path.stat() for path in sorted(folder.glob("clients-*"))}

    def check(self):
        """The newest checkpoint is whole, and holds the last state of each client."""
        saved, store = newest(self.folder), ClientStore()
        assert saved.round == self.round
        kept_in(self.folder, done=self.round).restore(store, lambda k: True)
        assert {k: state["c"][0, 0].item() for k, state in store._kept.items()} == self.states
        assert store.common["all of them"].item() == 100 * self.round
        for k, value in self.states.items():
            assert saved.client(k)[f"{k}/c"][0] == value


EVERYBODY = [*range(CLIENTS)]


def test_a_checkpoint_writes_what_changed_and_holds_everything(tmp_path):
    run = Run(tmp_path).rounds(EVERYBODY, [3], [4, 5], [3])
    sizes = {name: stat.st_size for name, stat in run.files().items()}
    assert list(sizes) == [f"clients-00000.{t}.safetensors" for t in ("000001", "000002", "000003")] + [
        "clients-00000.safetensors"
    ]
    whole = sizes["clients-00000.000001.safetensors"]
    assert all(size < whole / 4 for name, size in sizes.items() if "000001" not in name)
    run.check()


def test_what_is_the_same_takes_its_space_once_and_stays_when_earlier_checkpoints_go(tmp_path):
    run = Run(tmp_path, keep=2).rounds(EVERYBODY, [1], [2], [1])
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["round-000003", "round-000004"]
    assert run.files()["clients-00000.000001.safetensors"].st_nlink == 2
    shutil.rmtree(tmp_path / "checkpoints" / "round-000003")
    run.check()


def test_a_client_that_changed_between_two_checkpoints_is_written(tmp_path):
    run = Run(tmp_path, every=3).rounds(EVERYBODY, [0], [1], [2], [3], [4])
    assert list(run.files()) == ["clients-00000.000003.safetensors", "clients-00000.safetensors"]
    run.rounds([5])
    assert run.checkpoints.flush() == 7
    run.check()


@pytest.mark.parametrize("cohorts", [[[k] for k in range(6)], [EVERYBODY[:12], EVERYBODY[8:]], [EVERYBODY]])
def test_from_time_to_time_all_is_written_into_one_file(tmp_path, monkeypatch, cohorts):
    monkeypatch.setattr(segments, "MOST", 4)
    run, most = Run(tmp_path).rounds(EVERYBODY), 0
    for ids in cohorts:
        run.rounds(ids)
        most = max(most, len(run.files()))
        assert sum(s.st_size for s in run.files().values()) < 2.5 * CLIENTS * (4 * 50 + 80)
        run.check()
    assert most <= 4
    if cohorts == [EVERYBODY]:
        assert list(run.files()) == ["clients-00000.safetensors"]


def test_a_resumed_run_begins_with_a_file_of_all_states(tmp_path):
    run = Run(tmp_path).rounds(EVERYBODY, [3], [4])
    again = Run(tmp_path, done=3)
    again.checkpoints.restore(again.store, lambda k: True)
    again.states = dict(run.states)
    again.rounds([7])
    assert list(again.files()) == ["clients-00000.safetensors"]
    again.rounds([8]).check()


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run = Run(tmp_path).rounds(EVERYBODY, [3], [4])
    assert len(run.files()) == 3
    run.check()


def test_a_checkpoint_whose_earlier_files_are_gone_is_not_written(tmp_path):
    run = Run(tmp_path).rounds(EVERYBODY)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(WriteError, match="the checkpoint of round 1, which holds the states of other clients, is gone"):
        run.rounds([3])


def test_a_flipped_bit_in_a_linked_file_is_noticed(tmp_path, logged):
    run = Run(tmp_path).rounds(EVERYBODY, [3], [4])
    path = tmp_path / "checkpoints" / f"round-{run.round:06d}" / "clients-00000.000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)
    assert newest(tmp_path) is None
    assert any("000001" in line and "is damaged" in line for line in logged)
