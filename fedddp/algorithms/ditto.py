"""Ditto: a model of one's own, not far from the global one."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..types import ClientState, ClientUpdate, ServerState
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """Li, Hu, Beirami, Smith 2021, "Ditto: fair and robust federated learning through personalization", Algorithm 1.

        v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w_t)),   s passes over the client's data a round

    beside federated averaging of w, which knows nothing of v_k. lambda = 0 trains alone, a large one follows w_t.
    Symbols: v_k = client["v"], w_t = server.w, lambda = lam, s = personal_epochs, eta = that of the client optimizer.

    Where the paper leaves v_k open before client k first takes part, it is w_t. BatchNorm statistics of v_k are its own
    and not drawn to those of w_t.
    """

    lam: Annotated[
        float, Field(ge=0, le=1e9, description="how strongly personal models are drawn to the global one")
    ] = 0.1
    personal_epochs: Annotated[
        int, Field(ge=0, le=10_000, description="epochs of the personal model; 0 = client.local_epochs")
    ] = 0

    @property
    def traits(self) -> Traits:
        return replace(super().traits, trainings=2)

    def init_client(self, server: ServerState) -> ClientState:
        return {"v": server.w.unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, _, result = super().client_update(server, client, local)
        w = server.w[: server.num_trainable]
        own = local.train(client["v"], lambda g, v: g + self.lam * (v - w), epochs=self.personal_epochs or None)
        return update, {"v": own.w}, result

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return client["v"]
