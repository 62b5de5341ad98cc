"""FedNova: clients that take more steps pull in their direction, not further."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..optim import Optimizer
from ..types import ClientState, Cohort, Delivery, LocalResult, Mean, ServerState, Update
from .base import LocalTraining
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedNova(FedAvg):
    """Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization", eq. 6.

    w_{t+1} = w_t - tau_eff sum_k p_k eta d_k,   d_k = (w_t - w_k) / (eta |a_k|_1),   tau_eff = sum_k p_k |a_k|_1

    |a_k|_1 is tau_k, the local steps, under plain SGD; under momentum, how often a gradient moves w_k (section 4).
    With equal steps it is FedAvg. Uploads the direction and, as one number, the steps.
    Symbols: eta |a_k|_1 = local.optimizer.gradient_weight(steps) = vector "tau", -d_k = vector "direction", p_k the
    weights of the mean. Buffers, which have no steps, are averaged.
    """

    def unfit(self, optimizer: Optimizer, privacy: str, delivery: Delivery) -> str | None:
        if optimizer.gradient_weight(torch.ones(1)) is None:
            return (
                f"directions are normalised by how often a gradient moved the model, which is not defined for "
                f"{type(optimizer).__name__}; use client.optimizer.name=sgd"
            )
        if privacy == "client":
            return "a clip would scale both factors of its update; use fedavg with privacy.level=client"
        return None

    def vectors(self, dim: int) -> dict[str, int]:
        return {"direction": dim, "tau": 1}

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        result, p = local.train(server.w), server.num_trainable
        tau = local.optimizer.gradient_weight(result.steps)
        assert tau is not None  # see `unfit`
        tau = tau.to(result.delta)[:, None]  # [K, 1]
        direction = result.delta.clone()
        direction[:, :p] /= tau.clamp(min=torch.finfo(tau.dtype).tiny)  # a client without steps: 0 / tiny
        weight = self.weight(local).masked_fill(result.steps == 0, 0)  # it has no direction to point in
        return Update({"direction": direction, "tau": tau}, weight), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        delta, p = mean.vectors["direction"].clone(), server.num_trainable
        delta[:p] *= mean.vectors["tau"]
        return self.moved(server, delta)
