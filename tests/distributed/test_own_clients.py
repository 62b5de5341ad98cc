"""What secure aggregation hides does not lie in the run folder: each rank keeps what its clients remember to itself."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedddp.checkpoints.own_clients import OwnClients
from fedddp.comm import CommError, Place
from fedddp.config import UsageError, build
from fedddp.setup.assemble import _run_folder
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.distributed import configured, train

LR, RANKS = 0.1, 3


def table_of(tmp_path, name, rounds, *, masked=True, own="own/{rank}", resume="never"):
    apart = {"clients_dir": str(tmp_path / own)} if own else {}
    return configured(
        tmp_path,
        run={"name": name, "rounds": rounds, "resume": resume},
        data__partition={"num_clients": RANKS},
        client={"batch_size": 40, "optimizer": {"name": "sgd", "lr": LR}},
        algorithm={"name": "scaffold"},
        checkpoint={"every": 1, "keep": 1, **apart},
        privacy={"secure_aggregation": {"enabled": masked}},
    )


def vectors_in(folder, dim):
    """Every vector of the model's length that a reader of a folder finds, but for the server's own."""
    files = [path for path in folder.rglob("*.safetensors") if path.name.startswith("clients-")]
    return [vector for path in files for vector in load_file(path).values() if len(vector) == dim]


def test_scaffold_tells_each_update_in_the_run_folder_unless_clients_are_kept_apart(run_ranks, tmp_path):
    """After round 1, -K lr c_k is client k's update: it is found in a plain run, not in a masked one."""
    run_ranks(train, RANKS, table_of(tmp_path, "plain", 1, masked=False, own=""))
    (checkpoint,) = (tmp_path / "runs" / "plain" / "checkpoints").glob("round-*")
    w = load_file(checkpoint / "server.safetensors")["w"]
    stolen = [-4 * LR * control for control in vectors_in(checkpoint, len(w))]  # 160 examples: K = 4 steps
    assert len(stolen) == RANKS
    start = load_file(checkpoint / "server.safetensors")["w"] - sum(stolen) / RANKS
    run_ranks(train, RANKS, table_of(tmp_path, "masked", 1))
    masked = tmp_path / "runs" / "masked"
    w = load_file(next((masked / "checkpoints").glob("round-*")) / "server.safetensors")["w"]
    assert torch.allclose(w - sum(stolen) / RANKS, start, atol=1e-5)  # the same updates, under their masks
    assert vectors_in(masked, len(w)) == []
    for rank in range(RANKS):
        (file,) = (tmp_path / "own" / str(rank)).rglob("*.safetensors")
        assert torch.allclose(-4 * LR * load_file(file)[f"{rank}/control"], stolen[rank], atol=1e-5)
        assert stat.S_IMODE(os.stat(file.parent).st_mode) == 0o700


def test_equal_states_have_unequal_hashes(tmp_path):
    """An equal hash would tell readers of the run folder that none of a rank's clients took part."""
    own, states = OwnClients(tmp_path / "own", tmp_path / "run", 0), {"3/control": torch.ones(4)}
    first, second = own.write(1, states), own.write(2, states)
    assert first != second
    assert own.read(1, first)["3/control"].equal(own.read(2, second)["3/control"])


def test_a_run_goes_on_with_what_each_rank_kept(run_ranks, tmp_path):
    whole = run_ranks(train, RANKS, table_of(tmp_path, "whole", 4))[0]
    run_ranks(train, RANKS, table_of(tmp_path, "cut", 2))
    resumed = run_ranks(train, RANKS, table_of(tmp_path, "cut", 4, resume="auto"))[0]
    assert resumed["sha256"] == whole["sha256"]
    kept = {path.stem for path in (tmp_path / "own" / "0").rglob("cut-*/**/*.safetensors")}
    checkpoints = {path.name for path in (tmp_path / "runs" / "cut" / "checkpoints").glob("round-*")}
    assert "round-000001" not in checkpoints
    assert checkpoints <= kept  # a rank removes a file when it writes the next one
    assert len(kept) <= len(checkpoints) + 1


def refused(comm, table, gone):
    if comm.rank == gone:
        for file in Path(table["own"]).rglob("*.safetensors"):
            file.unlink()
    comm.barrier("test")
    try:
        train(comm, {name: keys for name, keys in table.items() if name != "own"})
    except UsageError as error:
        return error.key, error.code
    except Exception as error:
        return type(error).__name__
    return "accepted"


def test_a_rank_without_its_file_says_so(run_ranks, tmp_path):
    run_ranks(train, RANKS, table_of(tmp_path, "cut", 1))
    table = table_of(tmp_path, "cut", 2, resume="auto") | {"own": str(tmp_path / "own" / "1")}
    told = run_ranks(refused, RANKS, table, 1)
    assert told[1] == ("checkpoint.clients_dir", "clients-dir-file")


@pytest.mark.parametrize(
    ("ranks", "own", "code"), [(4, "own/{rank}", "clients-dir-ranks"), (RANKS, "", "clients-dir-missing")]
)
def test_what_cannot_go_on_is_refused(tmp_path, run_ranks, ranks, own, code):
    masked = own != ""  # a masked run without the folder is refused for itself
    run_ranks(train, RANKS, table_of(tmp_path, "cut", 1, masked=masked))
    place = Place(0, ranks, 0, ranks)
    with pytest.raises(UsageError) as caught:
        prepare(resolve(build(table_of(tmp_path, "cut", 2, masked=masked, own=own, resume="auto")), place), place)
    assert (caught.value.key, caught.value.code) == ("checkpoint.clients_dir", code)


class Sayer:
    """Rank 0 as another rank hears it."""

    def __init__(self, says):
        self._says = says

    def broadcast_text(self, text, purpose):
        return self._says


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "..", ""])
def test_rank_0_does_not_decide_where_others_write(tmp_path, name):
    config = resolve(build(configured(tmp_path)), Place())
    assert _run_folder(config, Sayer("run-2"), None) == tmp_path / "runs" / "run-2"
    with pytest.raises(CommError, match="not the name of a folder"):
        _run_folder(config, Sayer(name), None)
