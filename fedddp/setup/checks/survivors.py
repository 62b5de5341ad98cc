"""Checks of a run that goes on without lost ranks (`fedddp launch --min-ranks`)."""

import torch

from ...config import ResolvedConfig
from .configuration import compressed
from .data import Facts
from .table import Check

WITHOUT = "leave out --min-ranks; after a loss, --max-restarts or --run.resume=auto continue from the last checkpoint"

SURVIVORS: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "survivors-nccl",
        ("run.backend",),
        lambda c: c.run.backend == "nccl",
        "NCCL's kernels still wait for a rank that was lost, so --min-ranks cannot go on without it",
        "use run.backend=auto, which is gloo then, or leave out --min-ranks",
    ),
    Check(
        "survivors-private",
        ("privacy.level",),
        lambda c: c.privacy.level != "none",
        "a round that loses a rank is trained again, and would spend its privacy twice",
        WITHOUT,
    ),
    Check(
        "survivors-secure",
        ("privacy.secure_aggregation.enabled",),
        lambda c: c.privacy.secure_aggregation.enabled,
        "a round that loses a rank is summed again without it, and the difference of both sums is the lost rank's",
        "leave out --min-ranks; secure aggregation has a protocol of its own to go on without ranks (launch/party.sh)",
    ),
    Check(
        "survivors-checkpoints",
        ("checkpoint.every",),
        lambda c: c.checkpoint.every == 0,
        "what clients remember is lost with their rank, and --min-ranks continues from the last checkpoint then",
        "set it to 1 or more",
    ),
    Check(
        "survivors-own-clients",
        ("checkpoint.clients_dir",),
        lambda c: bool(c.checkpoint.clients_dir),
        "what a lost rank keeps in a folder of its own is out of the others' reach",
        "leave it or --min-ranks out",
    ),
    Check(
        "survivors-personal",
        ("evaluate.personal_every", "data.name"),
        lambda c: bool(c.evaluate.personal_every) and c.divided,
        "a lost rank takes its clients' held-out examples along (data.name=parts), and --min-ranks goes on without",
        "set it to 0, or leave out --min-ranks",
    ),
)


def _states_apart(f: Facts) -> bool:
    """Whether clients remember something where only one rank has their data."""
    if not (f.place.coordinated and f.config.divided):
        return False
    algorithm = f.config.trained_by
    start = algorithm.init_server(torch.zeros(f.spec.dim), f.spec)
    return bool(algorithm.init_client(start)) or compressed(f.config)


LOST_STATES: tuple[Check[Facts], ...] = (
    Check(
        "survivors-states",
        ("data.name", "algorithm.name", "aggregation.compression.name"),
        _states_apart,
        "clients remember something between rounds, and those of a lost rank cannot go on with it elsewhere: no other "
        "rank has their data; --min-ranks goes on without",
        "use an algorithm without client states and no compression, or leave out --min-ranks",
    ),
)
