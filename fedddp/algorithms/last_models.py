"""Any algorithm whose clients also remember the model they trained last, for the mean of these."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..types import ClientState, LocalResult, ServerState, Update
from .around import Around
from .base import LocalTraining

LAST_MODEL = "evaluate.last_model"
"""In a client's state: what it trained last, [K, D]; w_0 before."""


@dataclass(frozen=True)
class LastModels(Around):
    """``inner``, unchanged; a model more in the state of every client that took part."""

    def init_client(self, w: Tensor) -> ClientState:
        return {**self.inner.init_client(w), LAST_MODEL: w.unsqueeze(0)}

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        update, state, result = self.inner.client_update(server, _without(client), local)
        return update, {**state, LAST_MODEL: result.w}, result

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return self.inner.personal_params(server, _without(client))


def _without(client: ClientState) -> ClientState:
    return {name: rows for name, rows in client.items() if name != LAST_MODEL}
