"""What is measured: federated jobs that every contender does alike, and where each of them comes from.

Images are MNIST's 60,000 where a data root is given, else the 10,000 embedded digits dealt out to as many clients;
all of these clients are IID and of one size. Text is the embedded part of Shakespeare's plays, a role a client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedddp.data import Dataset, Partition


@dataclass(frozen=True)
class Workload:
    """A job: its model, its clients, its rounds. ``num_clients`` and ``cohort`` 0 mean one client a rank."""

    name: str = ""
    model: str = "mlp"
    num_clients: int = 0
    cohort: int = 0
    epochs: int = 1
    batch_size: int = 10
    lr: float = 0.1
    evaluate: bool = False
    eval_batch_size: int = 100
    seed: int = 0
    sections: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Keys of fedddp's configuration besides."""
    repeats: int = 5
    """Rounds that count; one more before them warms up."""
    starts: int = 1
    """How often each contender is started; the last start stays."""
    measures: tuple[str, ...] = ("total", "train")
    """What is compared, the most telling first: names of `report.series`."""
    variants: ClassVar[Mapping[str, tuple[str, ...]]] = {"fedddp": ()}
    """fedddp's contenders, name -> overrides; the first is compared with all others, also with other programs."""

    def settings(self, *, ranks: int, threads: int, device: str, repeats: int, examples: int | None) -> dict[str, Any]:
        """The content of ``workload.json``."""
        return {
            "name": self.name,
            "model": self.model,
            "num_clients": self.num_clients or ranks,
            "cohort": self.cohort or ranks,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "evaluate": self.evaluate,
            "eval_batch_size": self.eval_batch_size,
            "seed": self.seed,
            "sections": self.sections,
            "ranks": ranks,
            "threads": threads,
            "device": device,
            "rounds": repeats + 1,
            "examples": examples,
        }


@dataclass(frozen=True)
class W1(Workload):
    """The paper's CNN: 100 clients of 600 images, 10 a round, evaluated each round (McMahan et al. 2017, E=1, B=10)."""

    name: str = "w1"
    model: str = "cnn"
    num_clients: int = 100
    cohort: int = 10
    evaluate: bool = True
    measures: tuple[str, ...] = ("total", "train", "evaluate")


@dataclass(frozen=True)
class W2(Workload):
    """Many small clients, as on phones: McMahan et al.'s 2NN, 1000 clients of 60 images, 100 a round."""

    name: str = "w2"
    num_clients: int = 1000
    cohort: int = 100
    repeats: int = 9
    measures: tuple[str, ...] = ("clients/s", "train")


@dataclass(frozen=True)
class W3(Workload):
    """Few large clients, as hospitals: each rank is one client that owns a part of the images. CNN, B=64."""

    name: str = "w3"
    model: str = "cnn"
    batch_size: int = 64
    repeats: int = 3
    measures: tuple[str, ...] = ("train", "total")


@dataclass(frozen=True)
class LRMNIST(Workload):
    """FLUTE's comparison job (Dimitriadis et al. 2022): logistic regression, 1000 clients, 10 a round, lr 0.03.

    FLUTE's clients are unequal; here all have as much. 100 rounds, each with its evaluation.
    """

    name: str = "lr_mnist"
    model: str = "logistic"
    num_clients: int = 1000
    cohort: int = 10
    lr: float = 0.03
    evaluate: bool = True
    repeats: int = 99
    measures: tuple[str, ...] = ("total", "train", "evaluate")


@dataclass(frozen=True)
class Million(Workload):
    """What a large population costs: fedddp with a million clients of 60 against itself with 10,000.

    1000 of them take part in a round. Several clients own the same images, since there are not 60 million.
    """

    name: str = "million"
    num_clients: int = 1_000_000
    cohort: int = 1000
    starts: int = 3
    measures: tuple[str, ...] = ("start", "memory", "total")
    variants: ClassVar[Mapping[str, tuple[str, ...]]] = {
        f"N={population:,}": (
            "--data.partition.name=overlapping",
            "--data.partition.size=60",
            f"--data.partition.num_clients={population}",
        )
        for population in (1_000_000, 10_000)
    }


ROLES = {
    "data": {"name": "shakespeare-mini", "partition": {"name": "natural", "num_clients": 80}},
    "task": {"name": "next_token"},
}


@dataclass(frozen=True)
class Text(Workload):
    """Next characters by LEAF's LSTM: 80 roles of 23 to 359 sequences of 80, 20 a round (Caldas et al. 2018, B=4)."""

    name: str = "text"
    model: str = "lstm"
    num_clients: int = 80
    cohort: int = 20
    batch_size: int = 4
    sections: ClassVar[Mapping[str, Mapping[str, Any]]] = ROLES
    measures: tuple[str, ...] = ("clients/s", "train")


@dataclass(frozen=True)
class Decoder(Text):
    """The same by a small decoder of 2 blocks of attention and MLP, width 64."""

    name: str = "gpt"
    model: str = "gpt"
    sections: ClassVar[Mapping[str, Mapping[str, Any]]] = {**ROLES, "model": {"width": 64, "layers": 2, "heads": 4}}


WORKLOADS: dict[str, Workload] = {w.name: w for w in (W1(), W2(), W3(), LRMNIST(), Million(), Text(), Decoder())}


def value(record: Mapping[str, Any], measure: str) -> float:
    """A measure of one round, as a contender reported it."""
    return record["clients"] / record["total"] if measure == "clients/s" else record[measure]


def write_arrays(folder: Path, dataset: Dataset, partition: Partition) -> None:
    """``arrays.npz``, for contenders that do not load data themselves: client k owns order[offsets[k]:offsets[k+1]]."""
    np.savez(
        folder / "arrays.npz",
        train_x=dataset.train.x.numpy(),
        train_y=dataset.train.y.numpy(),
        test_x=dataset.test.x.numpy(),
        test_y=dataset.test.y.numpy(),
        order=partition.of(np.arange(partition.num_clients)).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(partition.sizes)]).astype(np.int64),
        mean=dataset.mean[0],
        std=dataset.std[0],
    )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "workload.json").write_text(json.dumps(settings, indent=1))
