"""A run that was found possible."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoints.checkpoint import Saved
from ..checkpoints.run_folder import RunFolder
from ..clients import Trainer
from ..comm import Place
from ..config import ResolvedConfig
from ..data import ClientData, Examples, Excerpt
from ..flat import FlatSpec
from ..tasks import Task


@dataclass(frozen=True)
class Prepared:
    """A run that was found possible: nothing has been sent or written yet.

    Of the training examples those are kept that ``data.placement`` says; ``held``: what clients hold out of their own,
    for those who ask (``evaluate.holdout``). ``trainer``: how this rank trains its clients, and why so. ``counts``
    (who owns what, of the clients that a picture shows), ``folder`` and ``saved`` (the checkpoint to go on from) are
    rank 0's.
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
