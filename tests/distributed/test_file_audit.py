"""Which files a rank opens: with divided data its own clients' and the public ones, nothing else of anybody's."""

import sys
from pathlib import Path

import pytest
import torch

from fedddp.comm import Place
from fedddp.config import build
from fedddp.federation import federate
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers import ranks
from tests.helpers.commands import command

main = command("split")


def train_under_audit(comm, folder, data):
    """One round; the files below ``folder`` or named like data that this rank opened, and the model's sum."""
    opened = []

    def audit(event, args):
        if event == "open" and isinstance(args[0], str | bytes | Path):
            opened.append(str(args[0]))

    sys.addaudithook(audit)  # for the life of this process
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    table = {
        "run": {"dir": str(Path(folder, "runs")), "rounds": 1, "device": "cpu", "threads": 1},
        "model": {"name": "mlp", "hidden": 2},
        "client": {"batch_size": 0},
        "telemetry": {"tensorboard": False, "progress": "off"},
        "checkpoint": {"every": 0},
    }
    experiment = connect(prepare(resolve(build({**table, "data": data}), place), place), comm=comm)
    server = federate(experiment.federation, experiment.server)
    ours = {name for name in opened if name.startswith(str(Path(folder, "parts"))) or name.endswith(".npz")}
    return sorted(Path(name).name if name.endswith(".npz") else str(Path(name).relative_to(folder)) for name in ours), (
        server.w.double().sum().item()
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("divided")
    words = ["--data.name=mnist-mini", "--data.partition.name=shards", "--data.partition.num_clients=4"]
    assert main([f"--out={folder / 'parts'}", *words]) == 0
    return folder


def test_a_rank_opens_its_own_clients_folders_and_the_public_one(parts):
    seen = ranks.run(parts, train_under_audit, 2, str(parts), {"name": "parts", "root": str(parts / "parts")})
    public = ["parts/public/manifest.json", "parts/public/test.safetensors"]
    for rank, (opened, _) in enumerate(seen):
        assert opened == [f"parts/client-0000{k}/train.safetensors" for k in (rank, rank + 2)] + public


def test_a_rank_of_a_simulation_opens_everybodys_and_learns_the_same(parts):
    """The control: the audit sees the whole file on every rank; dividing changes nothing else."""
    partition = {"name": "shards", "num_clients": 4}
    simulated = {"name": "mnist-mini", "placement": "home", "partition": partition}
    seen = ranks.run(parts, train_under_audit, 2, str(parts), simulated)
    assert [opened for opened, _ in seen] == [["mnist_mini.npz"]] * 2
    divided = ranks.run(parts, train_under_audit, 2, str(parts), {"name": "parts", "root": str(parts / "parts")})
    assert torch.equal(*(torch.tensor([total for _, total in found]) for found in (seen, divided)))
