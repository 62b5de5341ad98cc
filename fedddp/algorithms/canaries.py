"""Clients that upload canaries instead of what they learned, to audit the noise of client-level privacy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import ClientState, Cohort, LocalResult, Mean, ServerState, Update
from .base import Around, LocalTraining


@dataclass(frozen=True, eq=False)
class CanaryClients(Around):
    """``inner``, but client k uploads +-1 on the coordinates k, k + N, k + 2 N ..., scaled to the norm ``norm``.

    Nobody trains, and the server's model stays as it is: what is made of the sum is post-processing. From round to
    round the canary changes its sign, so that noise that is used twice cancels while the canary adds up.

    Attributes:
        included: which clients upload their canary, bool [N]; the others upload zeros.
        signs: +-1 for each coordinate, [d, N].
        norm: the L2 norm of an upload.
        see: receives the component of the server's mean along each canary, [N], and the sign that canaries had.
    """

    included: Tensor
    signs: Tensor
    norm: float
    see: Callable[[Tensor, int], None]

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        layout, (d, n) = self.inner.vectors(server.spec), self.signs.shape
        rows = server.w.new_zeros(len(local.ids), sum(layout.values()))  # [K, L]
        for row, k in zip(rows, local.ids, strict=True):
            if self.included[k]:
                row[k : d * n : n] = self.signs[:, k].to(row) * (self._sign(local.round) * self.norm / d**0.5)
        vectors = dict(zip(layout, rows.split(list(layout.values()), dim=1), strict=True))
        nan = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        still = server.w.new_zeros(1, 1).expand(len(rows), len(server.w))
        result = LocalResult(server.w, still, torch.zeros(len(rows), dtype=torch.long), nan, nan)
        return Update(vectors, local.num_examples), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        d, n = self.signs.shape
        row = torch.cat([mean.vectors[name] for name in self.inner.vectors(server.spec)])[: d * n].double().cpu()
        self.see((row.view(d, n) * self.signs).sum(dim=0) / d**0.5, self._sign(server.round))
        return server.unchanged()

    def _sign(self, round: int) -> int:
        return 1 - 2 * (round % 2)
