"""Who takes part in a round, beyond what a level of privacy draws: by losses, no stragglers, no lost ranks."""

import torch
from torch import Tensor

from ..clients import LocalTrainingSpec, Trainer
from ..comm import Comm, Place, Purpose
from ..sampling import Losses, Punctual, Sampler, home_rank
from ..types import Cohort


def participants(sampler: Sampler, dropping: LocalTrainingSpec | None, place: Place, home: tuple[int, int]) -> Sampler:
    """Return ``sampler`` without clients that do not take part.

    Args:
        sampler: draws the cohort.
        dropping: how clients train, if stragglers are dropped; else None.
        place: of this rank among those that are left.
        home: the rank whose clients live here, and of how many. Where data were divided, these are the ranks at first,
            and no other rank has the examples of a lost rank's clients.
    """
    if dropping:
        work, seed = dropping.work, dropping.seed
        sampler = Punctual(sampler, lambda k, t: work.late(k, t, seed))
    (_, ranks), numbers = home, place.numbers
    lost = {*range(ranks)} - {*numbers} if numbers and ranks == place.started else set()
    return Punctual(sampler, lambda k, t: home_rank(k, ranks) in lost) if lost else sampler


def losses(home: tuple[int, int], trainer: Trainer, comm: Comm) -> Losses:
    """Return a function to the clients' losses, each computed on its home rank; one all_reduce of 8 bytes a client."""

    def each(cohort: Cohort, w: Tensor) -> Tensor:
        comm.enter(f"choose clients for round {cohort.round + 1}")
        slots = torch.zeros(len(cohort.ids), dtype=torch.float64)
        for slot, k in enumerate(cohort.ids):
            if home_rank(k, home[1]) == home[0]:
                slots[slot] = trainer.on((k,), cohort.round).loss(w)[0]
        return comm.all_reduce(slots, Purpose.COHORT)

    return each
