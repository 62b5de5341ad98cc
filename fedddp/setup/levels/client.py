"""Assemble a run with client-level differential privacy: DP-FedAvg, whose noise the ranks add together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ...aggregation import Pipeline, SilentTally
from ...aggregation.ring import Sampler as Draw
from ...algorithms import CanaryClients, ClientLevel
from ...comm import Purpose
from ...config import ResolvedConfig
from ...federation import Federation
from ...privacy import (
    Budget,
    Canaries,
    ClientBudget,
    PoissonSampler,
    Randomness,
    SpendLog,
    discrete_gaussian,
    rarely_more,
)
from ...rng import generator
from ...sampling import Losses, Sampler, residents
from ...secure import quorum
from ...types import ServerState
from ..noise import adaptive_clip, client_ring
from .example import Private

log = logging.getLogger("fedddp")


class ClientPrivacy(Private):
    """DP-FedAvg: clipped updates of Poisson cohorts; each rank adds its part of the noise, in the ring of integers."""

    unit = "client"
    clips_updates = True
    hides_cohort = True
    _warned = False

    @cached_property
    def algorithm(self) -> ClientLevel:
        clip = adaptive_clip(self._p.config, self._comm.world_size)
        return ClientLevel(self._configured, self._keys.clip, self._p.config.noise_multiplier, clip)

    @property
    def _rate(self) -> float:
        return self._p.config.cohort_size / self._p.data.num_clients

    @property
    def _expected(self) -> float:
        """q N, by which the sum is divided, whoever was drawn."""
        return float(self._p.config.cohort_size)

    @staticmethod
    def largest_cohort(config: ResolvedConfig) -> int:
        return config.num_clients

    @property
    def _at_home(self) -> range:
        return residents(self._p.data.num_clients, self._comm.rank, self._comm.world_size)

    @property
    def least_trained(self) -> int:
        """With ``privacy.equal_work`` as many as are drawn in nearly every round."""
        return rarely_more(len(self._at_home), self._rate) if self._keys.equal_work else 0

    def sampler(self, losses: Losses) -> Sampler:
        """Each rank draws its own clients in secret; where any rank may train any client, all ranks draw the same."""
        population, comm = self._p.data.num_clients, self._comm
        if self._p.data.placement == "home":
            return PoissonSampler(population, self._rate, self._randomness("cohorts", comm.rank), self._at_home)
        own = self._randomness("cohorts")
        key = torch.frombuffer(bytearray(own.int64(4).numpy().tobytes()), dtype=torch.uint8)
        shared = Randomness(bytes(comm.broadcast(key, Purpose.PRIVACY).tolist()), predictable=own.predictable)
        return PoissonSampler(population, self._rate, shared)

    def planted(self, f: Federation, canaries: Canaries, most: int) -> Federation:
        """See `Plain.planted`; every client is a canary, ten times the clip or less: no entry may exceed the clip."""
        inner, clip, n = self._configured, self._keys.clip, self._p.data.num_clients
        stream = generator(self._p.config.run.seed, "audit")
        rows, d = canaries.add(n, stream), sum(inner.vectors(self._p.spec).values()) // n
        unit, observed = self._expected / clip, self._observed(canaries, rows, f.rounds)

        def see(mean: Tensor, sign: int) -> None:
            if self._comm.rank == 0:  # all ranks see the same
                observed(mean * unit, sign)

        signs = 2.0 * torch.randint(2, (d, n), generator=stream) - 1
        uploads = CanaryClients(inner, canaries.included[rows], signs, clip * min(10.0, d**0.5), see)
        return replace(f, algorithm=replace(self.algorithm, inner=uploads))

    def _observed(self, canaries: Canaries, rows: slice, rounds: int) -> Callable[[Tensor, int], None]:
        """Return what becomes of a release's components along the canaries ``rows``, and of the canaries' sign."""
        return lambda x, sign: canaries.see(rows, x, self._rate, sign)

    def budget(self, spend_file: SpendLog | None) -> Budget:
        return ClientBudget(self._rate, self._limits(spend_file))

    def pipeline(self) -> Pipeline:
        noise = self._noise()
        algorithm, spec, ranks = self.algorithm, self._p.spec, self._comm.world_size
        bound, weight, noise_bound = client_ring(self._p.config, algorithm.adaptive)
        noisy = quorum(ranks) if self._masked else ranks
        ring = self._ring(bound, weight, noise_bound=noise_bound, noisy_ranks=noisy)

        def perturb(server: ServerState) -> None:
            self._warn_at_bound(algorithm, server)
            stds = algorithm.noise_std(server)
            layout = [(length, stds[name]) for name, length in algorithm.vectors(spec).items()]
            ring.perturb(layout, noise(server))

        return self._pipeline(ring, SilentTally, denominator=self._expected, perturb=perturb)

    def _noise(self) -> Callable[[ServerState], Draw]:
        """Return a function from the server's state to what draws a round's noise."""
        noise = self._randomness("noise", self._comm.rank)

        def of_round(server: ServerState) -> Draw:
            stream = noise.child("round", server.round)
            return lambda n, std: discrete_gaussian(n, std, stream)

        return of_round

    def _warn_at_bound(self, algorithm: ClientLevel, server: ServerState) -> None:
        """Warn once that an adaptive clip has reached a bound and cannot follow the updates' norms further."""
        clip, adaptive = algorithm.current_clip(server), algorithm.adaptive
        if self._warned or self._comm.rank or not server.round or adaptive is None:
            return
        if adaptive.smallest < clip < adaptive.largest:
            return
        self._warned = True
        upper = clip >= adaptive.largest
        log.warning(
            "round %d: the adaptive clip is %g, the %s value allowed, and no longer follows the norms of updates; "
            "%s privacy.secure_aggregation.bound=%g%s",
            server.round + 1,
            clip,
            "largest" if upper else "smallest",
            "raise" if upper else "lower",
            adaptive.largest,
            "" if upper else ", or use more noise, 64 bits, or fewer ranks",
        )
