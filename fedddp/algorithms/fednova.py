"""FedNova: clients that take more steps pull in their direction, not further."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedNova(FedAvg):
    """Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization", eq. 6.

    w_{t+1} = w_t - tau_eff sum_k p_k eta d_k,   d_k = (w_t - w_k) / (eta |a_k|_1),   tau_eff = sum_k p_k |a_k|_1

    |a_k|_1 is tau_k, the local steps, under plain SGD; under momentum, how often a gradient moves w_k (section 4).
    With equal steps it is FedAvg. Uploads the direction and, as one number, the steps.
    Symbols: eta |a_k|_1 = local.optimizer.gradient_weight(steps) = vector "tau", -d_k = vector "direction", p_k the
    weights of the mean. Buffers, which have no steps, are averaged.

    With a proximal term, g <- g + mu (w - w_t) as in FedProx, a gradient fades in the steps that follow it:
    |a_k|_1 = (1 - (1 - eta mu)^tau_k) / (eta mu), and tau_eff = sum_k p_k tau_k, as in the authors' code.
    """

    mu: Annotated[
        float,
        Field(
            ge=0, le=1e9, description="pull of a client's steps towards the model of the round; 0 = no proximal term"
        ),
    ] = 0.0

    @property
    def traits(self) -> Traits:
        """A clip would scale both factors of an update."""
        return replace(super().traits, clippable=False)

    def unfit(self, optimizer: Optimizer) -> str | None:
        moved_by = optimizer.gradient_weight(torch.tensor([1, 2]))
        if moved_by is None:
            return (
                f"directions are normalised by how often a gradient moved the model, which is not defined for "
                f"{type(optimizer).__name__}; use client.optimizer.name=sgd"
            )
        first, second = moved_by.tolist()
        if self.mu and second != 2 * first:
            return "with mu above 0 directions are normalised for plain steps; set client.optimizer.momentum=0, or mu=0"
        if self.mu * first >= 1:
            return (
                f"mu={self.mu:g} times the learning rate {first:g} oversteps the model of the round; use a smaller mu"
            )
        return None

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"direction": spec.dim, "tau": 1}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        p, mu = server.num_trainable, self.mu
        center = server.w[:p]
        result = local.train(server.w, (lambda g, w: g + mu * (w - center)) if mu else None)
        tau, once = (local.optimizer.gradient_weight(steps) for steps in (result.steps, torch.ones(1)))
        assert tau is not None  # see `unfit`
        assert once is not None
        length = (1 - (1 - mu * once) ** result.steps) / mu if mu else tau  # eta |a_k|_1
        tau, length = tau.to(result.delta)[:, None], length.to(result.delta)[:, None]  # [K, 1]
        direction = result.delta.clone()
        direction[:, :p] /= length.clamp(min=torch.finfo(tau.dtype).tiny)  # a client without steps: 0 / tiny
        weight = self.weight(local).masked_fill(result.steps == 0, 0)  # it has no direction to point in
        return Update({"direction": direction, "tau": tau}, weight), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        delta, p = mean.vectors["direction"].clone(), server.num_trainable
        delta[:p] *= mean.vectors["tau"]
        return self.moved(server, delta)
