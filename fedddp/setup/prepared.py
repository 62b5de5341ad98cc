"""A run whose data and model are loaded and checked; the ranks are not connected yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoints.run_folder import RunFolder
from ..checkpoints.saved import Saved
from ..clients import Trainer
from ..comm import Place
from ..config import ResolvedConfig
from ..data import ClientData, Examples, Excerpt
from ..flat import FlatSpec
from ..tasks import Task


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its data and model are loaded and checked, and nothing has been sent or written.

    Attributes:
        config: the configuration, its noise multiplier filled in.
        place: this process's rank.
        device: where it trains.
        data: the training examples that this rank holds, by ``data.placement``.
        held: the examples that clients hold out (``evaluate.holdout``); None without.
        test: the test set.
        task: what is learned.
        spec: the layout of the model's flat vector.
        smallest_batch: the fewest examples that the model trains on, 1 or 2.
        trainer: how this rank trains its clients, and the reason in words.
        signature: what must be equal on every rank.
        counts: the numbers of examples per client and class for the picture of the partition; rank 0's.
        folder: the run folder; rank 0's.
        saved: the checkpoint to continue from; rank 0's.
    """

    config: ResolvedConfig
    place: Place
    device: torch.device
    data: ClientData
    held: ClientData | None
    test: Examples
    task: Task
    spec: FlatSpec
    smallest_batch: int
    trainer: tuple[Trainer, str]
    signature: dict[str, str]
    counts: Excerpt | None
    folder: RunFolder | None
    saved: Saved | None
