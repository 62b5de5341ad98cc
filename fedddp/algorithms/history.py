"""Wrappers that remember more than an algorithm does: the last mean, momentum on clients, the clients' last models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import Around, LocalTraining

LAST = "aggregation.last"
"""In ``ServerState.extra``: the mean of the last round that brought one, all vectors side by side; zeros at first."""
MOMENTUM, BEGAN = "aggregation.momentum.", "aggregation.began"
"""In a client's state: the momentum of each vector, and 1 once the client has taken part."""
LAST_MODEL = "evaluate.last_model"
"""In a client's state: what it trained last, [K, D]; w_0 before."""
FIRST_MODEL = "evaluate.first_model"
"""In ``ServerState.extra``: w_0, [D]."""


@dataclass(frozen=True)
class LastMean(Around):
    """Any algorithm ``inner``, whose server also remembers what the last round's aggregation gave.

    Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization": a rule that sees one round
    only is defeated by attacks that are small in each round and coupled over time.
    """

    own = (LAST,)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = self.inner.init_server(w, spec)
        return self.remembering(server, {LAST: w.new_zeros(sum(self.vectors(spec).values()))})

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        last = torch.cat([mean.vectors[name] for name in self.vectors(server.spec)])
        return self.remembering(super().server_update(server, mean, cohort), {LAST: last})


@dataclass(frozen=True)
class ClientMomentum(Around):
    """Any algorithm ``inner``, whose clients upload m_k <- (1 - beta) u_k + beta m_k in place of their update u_k.

    A client's first m_k is its first update; in rounds in which it does not take part, m_k stays. From the paper of
    `LastMean`.
    """

    own = (MOMENTUM, BEGAN)
    beta: float

    def init_client(self, server: ServerState) -> ClientState:
        own = {MOMENTUM + name: server.w.new_zeros(1, d) for name, d in self.vectors(server.spec).items()}
        return {**super().init_client(server), **own, BEGAN: server.w.new_zeros(1, 1)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = super().client_update(server, client, local)
        beta = self.beta * client[BEGAN]  # [K, 1]
        vectors = {name: (1 - beta) * u + beta * client[MOMENTUM + name] for name, u in update.vectors.items()}
        own = {MOMENTUM + name: m for name, m in vectors.items()}
        return Update(vectors, update.weight), {**state, **own, BEGAN: torch.ones_like(beta)}, result


@dataclass(frozen=True)
class LastModels(Around):
    """``inner``, unchanged; a model more in the state of every client that took part, for the mean of these."""

    own = (LAST_MODEL, FIRST_MODEL)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        return self.remembering(self.inner.init_server(w, spec), {FIRST_MODEL: w.clone()})

    def init_client(self, server: ServerState) -> ClientState:
        return {**super().init_client(server), LAST_MODEL: server.extra[FIRST_MODEL].unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = super().client_update(server, client, local)
        return update, {**state, LAST_MODEL: result.w}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        after = super().server_update(server, mean, cohort)
        return self.remembering(after, {FIRST_MODEL: server.extra[FIRST_MODEL]})
