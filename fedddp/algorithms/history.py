"""What a rule of aggregation rests on beyond one round: the last mean on the server, momentum on the clients.

Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization": a rule that sees one round only
is defeated by attacks that are small in each round and coupled over time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import ClientState, Cohort, LocalResult, Mean, ServerState, Update
from .around import Around
from .base import LocalTraining

LAST = "aggregation.last"
"""In ``ServerState.extra``: the mean of the last round that brought one, all vectors side by side; zeros at first."""
MOMENTUM, BEGAN = "aggregation.momentum.", "aggregation.began"
"""In a client's state: the momentum of each vector, and 1 once the client has taken part."""


@dataclass(frozen=True)
class LastMean(Around):
    """Any algorithm ``inner``, whose server also remembers what the last round's aggregation gave."""

    def init_server(self, w: Tensor, num_trainable: int) -> ServerState:
        server = self.inner.init_server(w, num_trainable)
        return self._with(server, w.new_zeros(sum(self.vectors(len(w)).values())))

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        return self.inner.client_update(self._without(server), client, local)

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        after = self.inner.server_update(self._without(server), mean, cohort)
        return self._with(after, torch.cat([mean.vectors[name] for name in self.vectors(len(server.w))]))

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return self.inner.personal_params(self._without(server), client)

    def _with(self, server: ServerState, last: Tensor) -> ServerState:
        return replace(server, extra={**server.extra, LAST: last})

    def _without(self, server: ServerState) -> ServerState:
        """As ``inner`` knows it: it may take all of ``extra`` for its optimizer's state."""
        return replace(server, extra={name: vector for name, vector in server.extra.items() if name != LAST})


@dataclass(frozen=True)
class ClientMomentum(Around):
    """Any algorithm ``inner``, whose clients upload m_k <- (1 - beta) u_k + beta m_k in place of their update u_k.

    A client's first m_k is its first update; in rounds in which it does not take part, m_k stays.
    """

    beta: float

    def init_client(self, w: Tensor) -> ClientState:
        own = {MOMENTUM + name: w.new_zeros(1, length) for name, length in self.vectors(len(w)).items()}
        return {**self.inner.init_client(w), **own, BEGAN: w.new_zeros(1, 1)}

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        update, state, result = self.inner.client_update(server, self._without(client), local)
        beta = self.beta * client[BEGAN]  # [K, 1]
        vectors = {name: (1 - beta) * u + beta * client[MOMENTUM + name] for name, u in update.vectors.items()}
        own = {MOMENTUM + name: m for name, m in vectors.items()}
        return Update(vectors, update.weight), {**state, **own, BEGAN: torch.ones_like(beta)}, result

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return self.inner.personal_params(server, self._without(client))

    def _without(self, client: ClientState) -> ClientState:
        return {name: rows for name, rows in client.items() if not name.startswith(MOMENTUM) and name != BEGAN}
