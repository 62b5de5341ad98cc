"""Time local training on this machine: a few steps of the first clients of a rank."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ...algorithms import Algorithm
from ...clients import ClientStore
from ...sampling import residents
from ...setup.prepared import Prepared
from ...types import ServerState
from .traffic import own_clients

ENOUGH = 1.0
"""Seconds of training after which no more steps are timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a rank's training in a round: ``fixed``, and of each ``step`` of every one of its clients."""

    fixed: float
    step: float


def timed(p: Prepared, algorithm: Algorithm, server: ServerState) -> Timing:
    """Train a block of this rank's clients in one step and in more and more, and return what a step takes.

    The model is the run's, and so are the clients, their batches and how many train at once. What is trained is thrown
    away. One process is timed: where ranks share this machine's cores or memory, each of them is slower.
    """
    trainer, clients = p.trainer[0], own_clients(p)
    at_once = max(1, min(trainer.width, clients))
    store, new = ClientStore(p.device), algorithm.init_client(server)
    mine = residents(p.data.num_clients, 0, 1 if p.data.placement == "shared" else p.place.world_size)
    ids = [k for k in mine if p.data.sizes[k]][:at_once]

    def train(steps: int) -> tuple[int, float]:
        """Return how many steps were taken, and the seconds."""
        began = time.perf_counter()
        local = trainer.limited_to(steps).on(ids, 0)
        _, _, result = algorithm.client_update(server, store.get(ids, new), local)
        if p.device.type == "cuda":
            torch.cuda.synchronize(p.device)
        return max(1, int(result.steps.max())), time.perf_counter() - began

    train(1)  # what is done once
    least, first = min(train(1), train(1), key=lambda run: run[1])
    most = int(p.training.work.most(p.data.sizes[ids]).max())
    taken, seconds, asked = least, first, 1
    while asked < most and taken == asked and seconds < max(ENOUGH, 2 * first):
        asked = min(most, 2 * asked)
        taken, seconds = train(asked)
    step = (seconds - first) / (taken - least) if taken > least and seconds > first else seconds / taken
    blocks = clients / len(ids)
    return Timing(fixed=blocks * max(0.0, first - least * step), step=blocks * step)
