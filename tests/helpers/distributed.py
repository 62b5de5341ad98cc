"""Small federations for tests: a configuration, and a body that trains it on an existing communicator."""

from __future__ import annotations

from typing import Any

from fedddp.checkpoints.saved import vector_sha256
from fedddp.comm import Comm, Place
from fedddp.config import build
from fedddp.federation import federate
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

BASE: dict[str, dict[str, Any]] = {
    "run": {"threads": 1, "rounds": 2, "device": "cpu"},
    "data": {"name": "synthetic", "args": {"num_train": 480, "num_test": 100, "noise": 0.5}},
    "model": {"name": "mlp", "hidden": 16},
    "checkpoint": {"every": 0},
    "telemetry": {"tensorboard": False, "progress": "off"},
}


def configured(tmp_path, **sections):
    """BASE with sections on top; ``data__partition={...}`` names a nested one."""
    table: dict[str, Any] = {name: dict(keys) for name, keys in BASE.items()}
    table["run"]["dir"] = str(tmp_path / "runs")
    for path, keys in sections.items():
        *parents, last = path.split("__")
        section = table
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = {**section.get(last, {}), **keys}
    return table


def experiment_of(comm: Comm, table: dict[str, Any]):
    """The experiment a configuration describes, on ``comm``."""
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    return connect(prepare(resolve(build(table), place), place), comm=comm)


def train(comm: Comm, table: dict[str, Any]) -> dict[str, Any]:
    """Train to the end; what a rank knows then."""
    experiment = experiment_of(comm, table)
    server = federate(experiment.federation, experiment.server)
    history = experiment.federation.telemetry.history
    return {"sha256": vector_sha256(server.w), "w": server.w, "rounds": server.round, "history": history}


def fruitless(comm: Comm, table: dict[str, Any]) -> bool:
    """Train to the end; whether no client contributed to the model."""
    experiment = experiment_of(comm, table)
    federate(experiment.federation, experiment.server)
    return experiment.federation.telemetry.nothing_learned
