"""Poisson cohorts: every client takes part in a round with probability q, independently of all others.

Accountants assume this kind of sampling (Mironov, Talwar, Zhang 2019, section 3.3): the cohort's size varies, and may
be zero. It protects only against those who do not know who was drawn, so a rank draws its own clients from a stream
that nobody else has, and keeps the result to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributions import Binomial

from ..sampling import Sampler
from ..types import Cohort
from .randomness import Randomness

RARELY = 1e-4
"""How probable it is at most that in a round more of a rank's clients are drawn than `rarely_more` says."""


@dataclass(frozen=True)
class PoissonSampler(Sampler):
    """S_t: each of ``clients`` (all of ``population`` if not given) with probability ``q``. May be empty.

    Give a rank's own clients and randomness of its own, and only that rank knows its part of the cohort. Raises
    ValueError for a ``q`` that is not in (0, 1].
    """

    population: int
    q: float
    randomness: Randomness
    clients: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"clients are drawn with a probability between 0 and 1, not {self.q:g}")

    def cohort(self, round: int) -> Cohort:
        """The cohort of a round (0-based), the same whenever it is asked for; ids ascend."""
        clients = range(self.population) if self.clients is None else sorted(self.clients)
        drawn = self.randomness.child("cohort", round).bernoulli(len(clients), self.q).tolist()
        ids = tuple(k for k, takes_part in zip(clients, drawn, strict=True) if takes_part)
        return Cohort(round, ids, self.population)


def rarely_more(clients: int, q: float, rarely: float = RARELY) -> int:
    """Return the smallest M with P[more than M of ``clients`` are drawn] <= ``rarely``, at rate ``q``."""
    at_least = Binomial(clients, torch.tensor(q, dtype=torch.float64)).log_prob(torch.arange(clients + 1.0)).exp()
    return int((at_least.flip(0).cumsum(0).flip(0)[1:] > rarely).sum())
