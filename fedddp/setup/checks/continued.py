"""Checks of what clients go on with from round to round: the order of their examples, rates by step, moments."""

import torch

from ...algorithms import Resumed
from ...config import ResolvedConfig
from ...optim import Scheduled, in_steps
from .table import Check


def _keeps(c: ResolvedConfig) -> bool:
    return c.client.optimizer_state == "keep"


CONTINUED: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "order-epochs",
        ("client.order", "client.local_steps"),
        lambda c: c.client.order == "continue" and not c.client.local_steps,
        "with local_epochs every round is whole passes over a client's examples",
        "set client.local_steps, or order=fresh",
    ),
    Check(
        "schedule-unit",
        ("client.schedule.unit", "client.local_steps"),
        lambda c: in_steps(c.client.schedule) and not c.client.local_steps,
        "clients differ in how many steps their epochs have",
        "set client.local_steps, or unit=rounds",
    ),
    Check(
        "optimizer-state-idle",
        ("client.optimizer_state", "client.optimizer.name", "client.optimizer.momentum"),
        lambda c: _keeps(c) and not c.client.optimizer.init([torch.zeros(1)]),
        "this client optimizer remembers nothing that could be kept",
        "set client.optimizer.momentum above 0, use adam or adamw, or optimizer_state=reset",
    ),
    Check(
        "optimizer-state-trainings",
        ("client.optimizer_state", "algorithm.name"),
        lambda c: _keeps(c) and (c.algorithm.traits.trainings > 1 or c.algorithm.traits.contrasts),
        "a client of this algorithm trains several models, or compares them, and the moments are those of one training",
        "use optimizer_state=reset, or an algorithm that trains one model a round, such as fedavg",
    ),
    Check(
        "optimizer-state-steps",
        ("client.optimizer_state", "algorithm.name"),
        lambda c: _keeps(c) and c.algorithm.unfit(Resumed(c.client.optimizer, {})) is not None,
        "this algorithm computes a client's mean gradient from how far it moved, and kept moments move it too",
        "use optimizer_state=reset, or fedavg",
    ),
    Check(
        "optimizer-state-restarts",
        ("client.optimizer_state", "algorithm.name"),
        lambda c: _keeps(c) and c.algorithm.traits.restarts,
        "what clients train begins anew in every round, and the moments are of what was there before",
        "use optimizer_state=reset, or fedex_lora",
    ),
    Check(
        "schedule-unit-steps",
        ("client.schedule.unit", "algorithm.name"),
        lambda c: in_steps(c.client.schedule) and c.algorithm.unfit(Scheduled(c.client.optimizer)) is not None,
        "this algorithm computes a client's mean gradient from how far it moved at one learning rate",
        "use unit=rounds, or fedavg",
    ),
)
"""Checks of a resolved configuration."""
