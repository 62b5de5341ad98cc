"""FedProx: local steps that are held near the model they started from."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ..types import ClientState, ClientUpdate, ServerState, Update
from .base import LocalTraining
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """Li et al. 2020, "Federated optimization in heterogeneous networks", Algorithm 2.

    Client k descends on h_k(w; w_t) = F_k(w) + (mu / 2) |w - w_t|^2, that is g <- g + mu (w - w_t) in each step; what
    it reaches in however many steps (``client.stragglers``) is averaged. mu = 0 is FedAvg.
    Symbols: mu = self.mu, w_t = server.w, g and w the hook's arguments.
    """

    mu: Annotated[float, Field(ge=0, le=1e9, description="pull of a client's steps towards the model of the round")] = (
        0.01
    )

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        if not self.mu:
            return super().client_update(server, client, local)
        center = server.w[: server.num_trainable]
        result = local.train(server.w, lambda g, w: g + self.mu * (w - center))
        return Update({"delta": result.delta}, self.weight(local)), client, result
