"""fedddp.checkpoints.checkpoint: whole or not there."""

import errno
import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors import SafetensorError

from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.checkpoints.durable import WriteError
from fedddp.checkpoints.saved import differences, newest, sha256, vector_sha256
from fedddp.clients import ClientStore
from fedddp.comm import Comm, Place
from fedddp.evaluation.server import Score
from fedddp.types import ServerState
from tests.helpers.support import flat

CONFIG = {"run": {"seed": 3}, "client": {"optimizer": {"lr": 0.1}}}


def server(t):
    w = torch.randn(6, generator=torch.Generator().manual_seed(t))
    return ServerState(w, flat(6, 4), {"momentum": torch.full((4,), float(t))}, t)


def remembered(t):
    store = ClientStore()
    store.put((0, 5), {"c": torch.tensor([[t, 1.0], [t, 5.0]])}, (0, 1))
    store.commit()
    return store


def score(accuracy):
    return Score({"accuracy": accuracy}, 1.0, torch.eye(2))


def checkpoints(folder, *, every=1, keep=3, stateful=True, done=0):
    return Checkpoints(folder, CONFIG, Comm.alone(), every=every, keep=keep, stateful=stateful, done=done)


def written(folder, accuracies, **more):
    """A run of as many rounds as there are accuracies; the names of the checkpoints that are left."""
    kept = checkpoints(folder, **more)
    for t, accuracy in enumerate(accuracies, 1):
        kept.after_round(server(t), remembered(t), accuracy and score(accuracy), last=t == len(accuracies))
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    state = ServerState(server(2).w.to(dtype), flat(6, 4), {"momentum": torch.arange(4.0).to(dtype)}, 2)
    checkpoints(tmp_path).after_round(state, remembered(2), score(0.5), last=True)
    saved = newest(tmp_path)
    assert (saved.round, saved.num_trainable, saved.config) == (2, 4, CONFIG)
    w, extra = saved.server()
    assert torch.equal(w, state.w)
    assert w.dtype == dtype
    assert extra.keys() == {"momentum"}
    assert torch.equal(extra["momentum"], state.extra["momentum"])


def test_clients_come_back_to_where_they_live_now(tmp_path):
    written(tmp_path, [0.5])
    store = ClientStore()
    checkpoints(tmp_path, done=1).restore(store, lambda client: client == 5)
    assert store.get((0, 5), {"c": torch.zeros(1, 2)})["c"].tolist() == [[0, 0], [1, 5]]


def test_stateless_runs_write_no_client_files(tmp_path):
    written(tmp_path, [0.5], stateful=False)
    names = sorted(path.name for path in (tmp_path / "checkpoints/round-000001").iterdir())
    assert names == ["manifest.json", "server.safetensors", "state.json"]


def test_other_ranks_write_their_clients_and_nothing_else(tmp_path):
    comm = Comm(Place(1, 2), torch.device("cpu"), store=None, timeout=0.0)
    for folder, stateful in ((tmp_path / "a", False), (tmp_path / "b", True)):
        kept = Checkpoints(folder, CONFIG, comm, every=1, keep=3, stateful=stateful)
        kept.after_round(server(1), remembered(1), None, last=True)
    assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "b").rglob("*.*s*")] == ["clients-00001.safetensors"]


def test_checkpoints_come_every_so_often_and_last(tmp_path):
    assert written(tmp_path, [0.1] * 5, every=2, keep=9) == ["round-000002", "round-000004", "round-000005"]
    assert written(tmp_path / "off", [0.1] * 5, every=0) == []


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    assert written(tmp_path, [0.2, 0.9, 0.3, 0.4, 0.5], keep=2) == ["round-000002", "round-000004", "round-000005"]
    assert written(tmp_path / "never", [None] * 4, keep=1) == ["round-000004"]
    assert written(tmp_path / "newest", [0.2, 0.3, 0.9], keep=1) == ["round-000003"]


def test_an_interrupted_run_writes_its_last_finished_round_once(tmp_path):
    kept = checkpoints(tmp_path, every=10)
    assert kept.flush() == 0
    kept.after_round(server(3), remembered(3), None, last=False)
    assert newest(tmp_path) is None
    assert kept.flush() == 3
    assert newest(tmp_path).round == 3
    (tmp_path / "checkpoints/round-000003/state.json").write_text("touched")
    assert kept.flush() == 3
    assert newest(tmp_path) is None


def test_a_resumed_run_does_not_write_again_what_it_started_from(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "round-000004").mkdir(parents=True)
    kept = checkpoints(tmp_path, done=4)
    kept.restore(remembered(0), lambda client: True)
    assert kept.flush() == 4
    assert [path.name for path in folder.rglob("*")] == ["round-000004"]


FILES = ["server.safetensors", "clients-00000.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_in_any_file_is_noticed_and_the_one_before_is_taken(tmp_path, logged, name, where):
    written(tmp_path, [0.5, 0.6])
    path = tmp_path / "checkpoints/round-000002" / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    saved = newest(tmp_path)
    assert saved.round == 1
    assert torch.equal(saved.server()[0], server(1).w)
    assert len(logged) == 1
    assert logged[0].startswith(f"{path.parent} is damaged (")
    assert logged[0].endswith(") and is skipped")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_truncated_or_missing_file_is_noticed(tmp_path, logged, name, damage):
    written(tmp_path, [0.5, 0.6])
    path = tmp_path / "checkpoints/round-000002" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"")
    assert newest(tmp_path).round == 1
    assert len(logged) == 1


def test_what_a_killed_run_left_half_written_is_ignored_and_then_replaced(tmp_path, logged):
    written(tmp_path, [0.5, 0.6])
    partial = (tmp_path / "checkpoints/round-000002").rename(tmp_path / "checkpoints/.round-000002")
    (partial / "clients-00007.safetensors").write_bytes(b"of a rank that is no more")
    assert newest(tmp_path).round == 1
    assert logged == []
    kept = checkpoints(tmp_path)
    kept.after_round(server(2), remembered(2), None, last=True)
    assert newest(tmp_path).round == 2
    assert not partial.exists()
    assert sorted(path.name for path in newest(tmp_path).folder.iterdir()) == sorted(FILES)


def test_without_a_whole_checkpoint_there_is_none(tmp_path, logged):
    assert newest(tmp_path) is None
    written(tmp_path, [0.5])
    (tmp_path / "checkpoints/round-000001/manifest.json").unlink()
    assert newest(tmp_path) is None
    assert len(logged) == 1


def test_the_manifest_lists_every_file_with_its_sum(tmp_path):
    written(tmp_path, [0.5])
    folder = tmp_path / "checkpoints/round-000001"
    sums = json.loads((folder / "manifest.json").read_text())
    assert sums == {name: sha256(folder / name) for name in FILES if name != "manifest.json"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_differences_name_what_may_not_change():
    saved = {"run.seed": 1, "run.rounds": 5, "client.optimizer.lr": 0.1, "data.root": "a", "evaluate.every": 1}
    assert differences(saved, dict(saved)) == []
    free = {"run.rounds": 9, "data.root": "b", "evaluate.every": 3, "checkpoint.keep": 2, "telemetry.progress": "off"}
    assert differences(saved, {**saved, **free}) == []
    assert differences(saved, {**saved, "privacy.secure_aggregation.roster": "of fewer parties"}) == []
    assert differences(saved, {**saved, "run.seed": 2, "client.optimizer.lr": 0.2}) == [
        "client.optimizer.lr is 0.1 there, 0.2 here",
        "run.seed is 1 there, 2 here",
    ]
    assert differences(saved, {**saved, "cohort.size": 3}) == ["cohort.size is None there, 3 here"]


def test_the_digest_of_a_vector_is_of_its_bytes():
    w = torch.tensor([1.0, 2.0])
    assert vector_sha256(w) == hashlib.sha256(struct.pack("<2f", 1, 2)).hexdigest()
    assert vector_sha256(w) != vector_sha256(torch.tensor([1.0, -2.0]))
    assert vector_sha256(torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0]) == vector_sha256(w)


def test_what_came_after_the_resumed_round_is_removed(tmp_path):
    """Else damaged rounds would push the new ones out when old checkpoints are pruned."""
    written(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5], keep=5)
    kept = checkpoints(tmp_path, done=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["round-000001", "round-000002"]
    kept.after_round(server(3), remembered(3), score(0.3), last=False)
    kept.wait()
    assert newest(tmp_path).round == 3


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        written(tmp_path, [0.1])
    finally:
        os.umask(before)
    files = (tmp_path / "checkpoints/round-000001").iterdir()
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys(FILES, 0o666 & ~umask)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES])
@pytest.mark.parametrize("where", ["durable.save_file", "checkpoint.write_bytes", "durable.sync"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_and_says_so(tmp_path, monkeypatch, where, error):
    kept = checkpoints(tmp_path)
    kept.after_round(server(1), remembered(1), score(0.1), last=False)
    kept.wait()

    def fail(*args, **more):
        if where == "durable.save_file":
            raise SafetensorError(f"Error while serializing: I/O error (os error {error})")
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(f"fedddp.checkpoints.{where}", fail)
    with pytest.raises(WriteError) as told:
        kept.after_round(server(2), remembered(2), score(0.2), last=True)
    line = str(told.value)
    full = error != errno.EACCES
    assert line.startswith("no space left for the checkpoint of round 2 in" if full else "the checkpoint of round 2 in")
    assert "the checkpoint of round 1 is whole" in line
    assert "--run.resume=auto" in line
    assert "\n" not in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-000001"]
    assert newest(tmp_path).round == 1
