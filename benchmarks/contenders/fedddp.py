"""fedddp as a contender: `python benchmarks/contenders/fedddp.py WORK [--section.key=value ...]`.

One run, driven round by round, with what a run does by default but for checkpoints, TensorBoard and the progress bar.
The overrides are those of `fedddp.train`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the repository's root for this folder: this file is called like the package it measures
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.contenders.protocol import Channel, drawn
from fedddp import __version__
from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.comm import Comm, Place
from fedddp.config import ResolvedConfig, build, parse
from fedddp.data import Dataset, Examples, Partition
from fedddp.evaluation.server import Evaluator
from fedddp.federation import Federation, federate
from fedddp.sampling import Sampler
from fedddp.setup.assemble import connect
from fedddp.setup.experiment import Experiment
from fedddp.setup.load import load_data, prepare
from fedddp.setup.prepared import Prepared
from fedddp.setup.resolve import resolve
from fedddp.types import Cohort, ServerState


def configuration(settings: Mapping[str, Any], words: Sequence[str], place: Place) -> ResolvedConfig:
    """The workload as a configuration, with overrides on top."""
    table = {
        "run": {
            "seed": settings["seed"],
            "rounds": settings["rounds"],
            "threads": settings["threads"],
            "device": settings["device"],
            "timeout": 86400.0,  # rank 0 stands still while other contenders have their turn
        },
        "data": {"partition": {"num_clients": settings["num_clients"]}},
        "cohort": {"size": settings["cohort"]},
        "model": {"name": settings["model"]},
        "client": {
            "local_epochs": settings["epochs"],
            "batch_size": settings["batch_size"],
            "optimizer": {"lr": settings["lr"]},
        },
        "evaluate": {"every": int(settings["evaluate"])},
        "checkpoint": {"every": 0},
        "telemetry": {"tensorboard": False, "progress": "off"},
    }
    return resolve(build(table, settings.get("sections", {}), *parse(words).layers), place)


def load(config: ResolvedConfig, examples: int | None) -> tuple[Dataset, Partition]:
    """The data and who owns what, of the first ``examples`` of the training set if a number is given."""
    dataset, partition = load_data(config)
    if examples is None:
        return dataset, partition
    train = Examples(dataset.train.x[:examples], dataset.train.y[:examples])
    return replace(dataset, train=train), config.data.partition.split(train.y.numpy(), config.run.seed)


def prepared(config: ResolvedConfig, place: Place, examples: int | None) -> Prepared:
    return prepare(config, place) if examples is None else prepare(config, place, *load(config, examples))


class NoEvaluation(Evaluator):
    """Never due. `federate` evaluates after the last round it is asked for, and here it is asked for one at a time."""

    def __init__(self) -> None:
        self.load = 0

    def due(self, round: int, last: bool) -> bool:
        return False

    def reached(self, score: object) -> bool:
        return False


class NoCheckpoints(Checkpoints):
    """Write nothing: `federate` writes the model after the last round it is asked for, and here that is each round."""

    def __init__(self) -> None:
        self.written = 0

    def after_round(self, *_: object, **__: object) -> None:
        pass


@dataclass(frozen=True)
class Drawn(Sampler):
    """The cohorts that every contender trains."""

    population: int
    size: int
    seed: int

    def cohort(self, round: int) -> Cohort:
        return Cohort(round, tuple(drawn(self.population, self.size, self.seed, round)), self.population)


def experiment(p: Prepared, comm: Comm | None = None) -> Experiment:
    """Connected ranks that write no model; without evaluation if ``evaluate.every`` is 0."""
    connected = connect(p, comm=comm)
    connected.federation.checkpoints.close()
    cohorts = Drawn(p.data.num_clients, p.config.cohort_size, p.config.run.seed)
    f = replace(connected.federation, checkpoints=NoCheckpoints(), sampler=cohorts)
    if not p.config.evaluate.every:
        f = replace(f, evaluation=replace(f.evaluation, server=NoEvaluation()))
    return replace(connected, federation=f)


def advance(f: Federation, server: ServerState) -> tuple[ServerState, float]:
    """One round that all ranks begin together, and its seconds."""
    f.comm.barrier("begin together")
    began = time.perf_counter()
    server = federate(f.until(server.round + 1), server)
    return server, time.perf_counter() - began


def another(comm: Comm, channel: Channel) -> bool:
    """Whether another round is asked for: rank 0 reads, and the others sleep until it knows."""
    asked = torch.tensor([float(comm.rank == 0 and channel.next())])
    return bool(comm.broadcast(asked, "next round"))


def serve(settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """What each rank does."""
    channel, place = Channel(), Place.from_env()
    run = experiment(prepared(configuration(settings, words, place), place, settings.get("examples")))
    f, server = run.federation, run.server
    if place.rank == 0:
        channel.ready(f"fedddp {__version__}, torch {torch.__version__}")
    while another(f.comm, channel):
        server, seconds = advance(f, server)
        if place.rank == 0:
            metrics = f.telemetry.history[-1]
            channel.report(
                train=metrics["seconds_train"],
                evaluate=metrics["seconds_evaluate"] if metrics["test_accuracy"] is not None else 0.0,
                total=seconds,
                clients=metrics["participants"],
                accuracy=metrics["test_accuracy"],
            )
    f.telemetry.close(None)
    f.comm.close()


def main() -> None:
    work, *words = sys.argv[1:]
    settings = json.loads((Path(work) / "workload.json").read_text())
    if "RANK" not in os.environ:  # again as `ranks` processes, in this one's place
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={settings['ranks']}"]
        os.execv(sys.executable, [sys.executable, *launch, __file__, *sys.argv[1:]])
    serve(settings, [f"--run.dir={work}/runs", *words])


if __name__ == "__main__":
    main()
