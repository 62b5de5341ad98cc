"""Assemble client-level privacy without secret sampling: fixed cohorts, and noise that is correlated over rounds."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from ...aggregation.ring import Sampler as Draw
from ...config import ResolvedConfig
from ...privacy import Budget, Canaries, CyclicBudget, CyclicSampler, SpendLog
from ...sampling import Losses, Sampler
from ...types import ServerState
from ..noise import mechanism_of
from .client import ClientPrivacy


class CorrelatedPrivacy(ClientPrivacy):
    """DP-FTRL: clipped updates of cohorts in a fixed order; each rank adds its part of the noise of `mechanism_of`.

    Cohorts and noise go by the number of the release, which never repeats, and z is drawn under a key that this process
    drew and nobody else has. So whatever was released by a process that was killed: its noise is in no other release.
    """

    @staticmethod
    def largest_cohort(config: ResolvedConfig) -> int:
        return config.cohort_size

    def budget(self, spend_file: SpendLog | None) -> Budget:
        self._budget = CyclicBudget(self._p.config.separation, self._limits(spend_file))
        return self._budget

    def sampler(self, losses: Losses) -> Sampler:
        return self._cohorts(lambda: self._budget.released)

    def _cohorts(self, released: Callable[[], int]) -> CyclicSampler:
        config = self._p.config
        return CyclicSampler(config.num_clients, config.cohort_size, config.run.seed, released)

    def _observed(self, canaries: Canaries, rows: slice, rounds: int) -> Callable[[Tensor, int], None]:
        """See `ClientPrivacy._observed`. Cohorts are public, and correlated noise is whitened: with covariance L L^T
        over releases, L^-1 times the releases up to one has independent noise.
        """
        mechanism, units = mechanism_of(self._p.config), iter(torch.eye(2 * rounds, dtype=torch.float64))
        assert mechanism is not None
        noise = torch.stack([*islice(mechanism.noise(lambda: next(units)), rounds)])  # [T, draws]
        whiten = torch.linalg.inv(torch.linalg.cholesky(noise @ noise.T))
        released = torch.zeros(0, self._p.data.num_clients, dtype=torch.float64)  # [t, N]
        added = released
        cohorts = self._cohorts(lambda: len(released))

        def observed(x: Tensor, sign: int) -> None:
            nonlocal released, added
            adds = torch.zeros_like(x)
            adds[list(cohorts.cohort(0).ids)] = sign
            released, added = torch.cat([released, x[None]]), torch.cat([added, adds[None]])
            row = whiten[len(released) - 1, : len(released)]
            canaries.see(rows, row @ released, 1.0, row @ added)

        return observed

    def _noise(self) -> Callable[[ServerState], Draw]:
        lengths, rows = list(self.algorithm.vectors(self._p.spec).values()), self._rows()

        def of_release(server: ServerState) -> Draw:
            parts = iter(next(rows).split(lengths))
            return lambda n, std: next(parts).mul(std).round_().to(torch.int64)

        return of_release

    def _rows(self) -> Iterator[Tensor]:
        """Yield the noise of each release, in units of the standard deviation of this rank's z.

        A process begins at the releases that there were: with a key of its own, C^-1 z begins anew. A seeded stream is
        the one of before, so it is drawn from its beginning.
        """
        stream, mechanism = self._randomness("correlated noise", self._comm.rank), mechanism_of(self._p.config)
        assert mechanism is not None
        length = sum(self.algorithm.vectors(self._p.spec).values())
        first = 1 if stream.predictable else self._budget.released  # counts the one that is about to happen
        for release, row in enumerate(mechanism.noise(lambda: stream.normal(length, torch.float64)), first):
            if release >= self._budget.released:
                yield row
