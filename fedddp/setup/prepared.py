"""A run whose data and model are loaded and checked; the ranks are not connected yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checkpoints.run_folder import RunFolder
from ..clients import LocalTrainingSpec, Trainer
from ..comm import Place
from ..config import ResolvedConfig
from ..data import ClientData, Examples, Excerpt
from ..flat import FlatSpec
from ..tasks import Task
from ..telemetry.loggers import Logger
from ..types import ServerState


class Earlier(Protocol):
    """The state of a run after an earlier round: a checkpoint, or what a rank has in memory."""

    @property
    def round(self) -> int: ...
    def server(self) -> tuple[Tensor, dict[str, Tensor]]: ...
    def budget(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class InMemory(Earlier):
    """The state after a round that this rank has finished. There is no privacy budget."""

    state: ServerState

    @property
    def round(self) -> int:
        return self.state.round

    def server(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.state.w, dict(self.state.extra)

    def budget(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Output:
    """Where rank 0 writes a run.

    Attributes:
        folder: the run folder.
        saved: the state to continue from, of a checkpoint in it.
        counts: the numbers of examples per client and class for the picture of the partition.
        owners: the same of more clients, for ``clients.csv``.
        loggers: what opens each further logger.
    """

    folder: RunFolder
    saved: Earlier | None
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
    def home(self) -> tuple[int, int]:
        """The rank whose clients live here, and of how many: client k lives on rank k mod R."""
        return home(self.config, self.place)

    @property
    def device(self) -> torch.device:
        """Where this rank trains."""
        return self.training.device

    @property
    def folder(self) -> RunFolder | None:
        """The run folder, on rank 0."""
        return self.output.folder if self.output else None

    @property
    def saved(self) -> Earlier | None:
        """The state to continue from, on rank 0."""
        return self.output.saved if self.output else None


def home(config: ResolvedConfig, place: Place) -> tuple[int, int]:
    """The rank whose clients live here, and of how many.

    Where the data were divided (``data.name=parts``), no other rank has those of a rank that was lost.
    """
    return place.home if config.divided else (place.rank, place.world_size)
