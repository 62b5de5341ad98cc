"""A run whose data and model are loaded and checked; the ranks are not connected yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checkpoints.run_folder import RunFolder
from ..checkpoints.saved import Saved
from ..clients import LocalTrainingSpec, Trainer
from ..comm import Place
from ..config import ResolvedConfig
from ..data import ClientData, Examples, Excerpt
from ..flat import FlatSpec
from ..tasks import Task
from ..telemetry.loggers import Logger


@dataclass(frozen=True)
class Output:
    """Where rank 0 writes a run.

    Attributes:
        folder: the run folder.
        saved: the checkpoint in it to continue from.
        counts: the numbers of examples per client and class for the picture of the partition.
        owners: the same of more clients, for ``clients.csv``.
        loggers: what opens each further logger.
    """

    folder: RunFolder
    saved: Saved | None
    counts: Excerpt
    owners: Excerpt
    loggers: Mapping[str, Logger] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its data and model are loaded and checked, and nothing has been sent or written.

    Attributes:
        config: the configuration, its noise multiplier filled in.
        place: this process's rank.
        data: the training examples that this rank holds, by ``data.placement``.
        held: the examples that clients hold out (``evaluate.holdout``); None without.
        test: the test set.
        inputs: description of the data, from which building the model again and normalising new inputs follow.
        task: what is learned.
        spec: the layout of the model's flat vector.
        training: how clients train.
        trainer: how this rank trains its clients, and the reason in words.
        signature: what must be equal on every rank.
        output: what rank 0 writes; None on the other ranks.
    """

    config: ResolvedConfig
    place: Place
    data: ClientData
    held: ClientData | None
    test: Examples
    inputs: dict[str, Any]
    task: Task
    spec: FlatSpec
    training: LocalTrainingSpec
    trainer: tuple[Trainer, str]
    signature: dict[str, str]
    output: Output | None

    @property
    def device(self) -> torch.device:
        """Where this rank trains."""
        return self.training.device

    @property
    def folder(self) -> RunFolder | None:
        """The run folder, on rank 0."""
        return self.output.folder if self.output else None

    @property
    def saved(self) -> Saved | None:
        """The checkpoint to continue from, on rank 0."""
        return self.output.saved if self.output else None
