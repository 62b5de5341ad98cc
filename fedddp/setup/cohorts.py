"""Who takes part in a round, beyond what a level of privacy draws: by losses, no stragglers, no lost ranks."""

import torch
from torch import Tensor

from ..clients import Trainer
from ..comm import Comm, Purpose
from ..sampling import Losses, Punctual, Sampler, home_rank
from ..types import Cohort
from .prepared import Prepared


def punctual(p: Prepared, sampler: Sampler) -> Sampler:
    """Return ``sampler`` without the stragglers, if these are dropped."""
    work, seed = p.training.work, p.training.seed
    return Punctual(sampler, lambda k, t: work.late(k, t, seed)) if p.config.client.drop_stragglers else sampler


def present(p: Prepared, sampler: Sampler) -> Sampler:
    """Return ``sampler`` without the clients whose rank was lost, if no other rank has their data."""
    (_, ranks), numbers = p.home, p.place.numbers
    lost = {*range(ranks)} - {*numbers} if numbers and ranks == p.place.started else set()
    return Punctual(sampler, lambda k, t: home_rank(k, ranks) in lost) if lost else sampler


def losses(p: Prepared, trainer: Trainer, comm: Comm) -> Losses:
    """Return a function to the clients' losses, each computed on its home rank; one all_reduce of 8 bytes a client."""

    def each(cohort: Cohort, w: Tensor) -> Tensor:
        comm.enter(f"choose clients for round {cohort.round + 1}")
        slots = torch.zeros(len(cohort.ids), dtype=torch.float64)
        for slot, k in enumerate(cohort.ids):
            if home_rank(k, p.home[1]) == p.home[0]:
                slots[slot] = trainer.on((k,), cohort.round).loss(w)[0]
        return comm.all_reduce(slots, Purpose.COHORT)

    return each
