"""q-FFL: clients that do worse weigh more, so that accuracy is spread more evenly over them."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import LocalTraining, Traits
from .fedavg import FedAvg

LEAST_LOSS = 1e-10
"""A client without any loss has weight 0 to the q, and no infinite slope."""


@dataclass(frozen=True)
class QFFL(FedAvg):
    """Li, Sanjabi, Beirami, Smith 2020, "Fair resource allocation in federated learning", Algorithm 2 (q-FedAvg).

    Minimises sum_k (p_k / (q + 1)) F_k^{q+1}:
    Dw_k = L (w_t - w_k);   Delta_k = F_k^q Dw_k;   h_k = q F_k^{q-1} |Dw_k|^2 + L F_k^q
    w_{t+1} = w_t - sum_k Delta_k / sum_k h_k

    with F_k at w_t. Both sums are divided by L here. All clients of a round weigh alike, as in the paper's Algorithm 2
    and its code (there p_k is how likely a client is drawn: ``cohort.sampler.name=size`` for p_k = n_k / n);
    ``examples`` weighs both sums by n_k. q = 0 is FedAvg with these weights.
    Symbols: q = self.q, L = self.lipschitz, F_k = local.loss(server.w), w_t = server.w, -Delta_k / L = vector "delta",
    h_k / L = vector "h". Buffers are averaged with the same weights.
    """

    weighting: Annotated[
        Literal["uniform", "examples"], Field(description="a client's weight in both sums: 1, or its examples")
    ] = "uniform"
    q: Annotated[float, Field(ge=0, le=1e9, description="0 = FedAvg; the larger, the more the worst clients count")] = (
        1.0
    )
    lipschitz: Annotated[
        float, Field(ge=0, le=1e9, description="L; 0 = one over the distance that a gradient moves w in a local step")
    ] = 0.0

    @property
    def traits(self) -> Traits:
        return replace(super().traits, reads_losses=True)

    def unfit(self, optimizer: Optimizer) -> str | None:
        if not self.lipschitz and optimizer.gradient_weight(torch.ones(1)) is None:
            return f"{type(optimizer).__name__}'s step is no multiple of the gradient: set algorithm.lipschitz above 0"
        return None

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"delta": spec.dim, "h": 1}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        p, loss = server.num_trainable, (local.loss(server.w) + LEAST_LOSS).to(server.w)[:, None]  # F_k, [K, 1]
        result = local.train(server.w)
        delta = result.delta.clone()
        squared = delta[:, :p].square().sum(dim=1, keepdim=True)  # |w_k - w_t|^2
        h = self.q * loss ** (self.q - 1) * self._lipschitz(local.optimizer) * squared + loss**self.q
        delta[:, :p] *= loss**self.q
        return Update({"delta": delta, "h": h}, self.weight(local)), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        delta, p = mean.vectors["delta"].clone(), server.num_trainable
        h = mean.vectors["h"]
        delta[:p] = torch.where(h > 0, delta[:p] / h, 0.0)  # losses so small that F_k^q is 0: nothing is left to learn
        return self.moved(server, delta)

    def _lipschitz(self, optimizer: Optimizer) -> float:
        """1 / lr, the paper's estimate."""
        step = optimizer.gradient_weight(torch.ones(1))
        return self.lipschitz or 1 / float(step if step is not None else 1)
