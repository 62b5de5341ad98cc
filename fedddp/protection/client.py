"""Client-level differential privacy: DP-FedAvg, its noise added by the ranks."""

from __future__ import annotations

from functools import cached_property

import torch

from ..aggregation import Pipeline, SilentTally
from ..algorithms import AdaptiveClip, Algorithm, ClientLevel
from ..privacy import Budget, ClientBudget, PoissonSampler, Randomness, SpendFile, discrete_gaussian
from ..safeguards import NOISE_BEYOND, cohort_size, largest_entry
from ..sampling import Sampler, home_rank
from ..secure import quorum
from ..types import ServerState
from .example import Private


class ClientPrivacy(Private):
    """DP-FedAvg: clipped updates of Poisson cohorts; the ranks add the noise together, each a share, in the ring."""

    @cached_property
    def algorithm(self) -> Algorithm:
        keys = self._keys
        adaptive, largest = keys.adaptive_clip, largest_entry(self._p.config)
        follow = AdaptiveClip(adaptive.quantile, adaptive.lr, self._expected, largest) if adaptive.enabled else None
        return ClientLevel(self._configured, keys.clip, self.sigma, follow)

    @property
    def _rate(self) -> float:
        return cohort_size(self._p.config) / self._p.data.num_clients

    @property
    def _expected(self) -> float:
        """q N, what the sum is divided by, whoever was drawn."""
        return float(cohort_size(self._p.config))

    def sampler(self) -> Sampler:
        """Each rank draws its own clients and tells nobody; where any rank may train any client, all draw alike."""
        population, comm = self._p.data.num_clients, self._comm
        if self._p.data.placement == "home":
            mine = [k for k in range(population) if home_rank(k, comm.world_size) == comm.rank]
            return PoissonSampler(population, self._rate, self._randomness("cohorts", comm.rank), mine)
        own = self._randomness("cohorts")
        key = torch.frombuffer(bytearray(own.int64(4).numpy().tobytes()), dtype=torch.uint8)
        shared = Randomness(bytes(comm.broadcast(key, "privacy").tolist()), predictable=own.predictable)
        return PoissonSampler(population, self._rate, shared)

    def budget(self, spend_file: SpendFile | None) -> Budget:
        return ClientBudget(self._rate, self._limits(spend_file))

    def pipeline(self) -> Pipeline:
        noise = self._randomness("noise", self._comm.rank)
        algorithm, dim, ranks = self.algorithm, self._p.spec.dim, self._comm.world_size
        assert isinstance(algorithm, ClientLevel)
        ring = self._ring(
            largest_entry(self._p.config),
            float(self._p.data.num_clients),
            noise_bound=NOISE_BEYOND * algorithm.largest_noise_std,
            shares=quorum(ranks) if self._masked else ranks,
        )

        def perturb(server: ServerState) -> None:
            stds, stream = algorithm.noise_std(server), noise.child("round", server.round)
            layout = [(length, stds[name]) for name, length in algorithm.vectors(dim).items()]
            ring.perturb(layout, lambda n, std: discrete_gaussian(n, std, stream))

        return self._pipeline(ring, SilentTally, denominator=self._expected, perturb=perturb)
