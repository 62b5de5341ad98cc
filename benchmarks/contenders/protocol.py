"""Common to all contenders: the workload they read, and the lines they exchange with the orchestrator.

A workload is a folder with `workload.json` and `arrays.npz`. A contender prints one `ready` line when all is loaded;
then each line `round` on stdin asks for one federated round, answered by one line of JSON with its seconds. `quit` or
the end of input ends it. In between it sleeps, since contenders take turns on the same cores.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Workload:
    """The settings in `workload.json`."""

    name: str
    model: str
    num_clients: int
    cohort: int
    epochs: int
    batch_size: int
    lr: float
    evaluate: bool
    eval_batch_size: int
    ranks: int
    threads: int
    seed: int
    rounds: int
    folder: Path

    @classmethod
    def read(cls, folder: str | Path) -> Workload:
        settings = json.loads((Path(folder) / "workload.json").read_text())
        return cls(**{k: settings[k] for k in cls.__dataclass_fields__ if k != "folder"}, folder=Path(folder))

    def clients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each client's normalised images, or tokens, and labels: views of one array, rows in the clients' order."""
        with np.load(self.folder / "arrays.npz") as arrays:
            order, offsets = arrays["order"], arrays["offsets"].tolist()
            x = normalise(arrays["train_x"][order], arrays)
            y = torch.from_numpy(arrays["train_y"][order])
        return [(x[a:b], y[a:b]) for a, b in pairwise(offsets)]

    def drawn(self, round: int) -> list[int]:
        """The cohort of a round (0-based), see `drawn`."""
        return drawn(self.num_clients, self.cohort, self.seed, round)

    def test(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The server's normalised test images and labels."""
        with np.load(self.folder / "arrays.npz") as arrays:
            return normalise(arrays["test_x"], arrays), torch.from_numpy(arrays["test_y"])


def drawn(num_clients: int, cohort: int, seed: int, round: int) -> list[int]:
    """The cohort of a round (0-based) for every contender: clients differ in size, so each must train the same ones."""
    return sorted(np.random.default_rng((seed, round)).choice(num_clients, cohort, replace=False).tolist())


def normalise(x: np.ndarray, arrays: np.lib.npyio.NpzFile) -> torch.Tensor:
    if x.dtype == np.int64:  # tokens
        return torch.from_numpy(x)
    return torch.from_numpy(x).float().div_(255).sub_(float(arrays["mean"])).div_(float(arrays["std"]))


class Channel:
    """The orchestrator's stdin and stdout. Whatever else is printed, by anybody, goes to stderr from now on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def _print(self, **line: object) -> None:
        print(json.dumps(line), file=self._out, flush=True)

    def ready(self, version: str) -> None:
        self._print(ready=True, version=version)

    def next(self) -> bool:
        """Sleeps until another round is asked for; False when the orchestrator has had enough."""
        return sys.stdin.readline().strip() == "round"

    def report(self, *, train: float, evaluate: float, total: float, clients: int, accuracy: float | None) -> None:
        self._print(train=train, evaluate=evaluate, total=total, clients=clients, accuracy=accuracy)
