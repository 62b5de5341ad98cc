"""FLoRA: the exact mean of all clients' adapters goes into the layer, and adapters begin anew each round."""

from dataclasses import dataclass, replace
from math import sqrt

import torch

from ..flat import FlatSpec
from ..rng import generator
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .adapters import Adapters
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class FLoRA(FedAvg):
    """Wang, Shen, He, Sun, Wang, Lyu, Li 2024, "FLoRA: federated fine-tuning large language models with heterogeneous
    low-rank adaptations" (NeurIPS, arXiv 2409.05976).

        R <- R + sum_k p_k B_k A_k;   B <- 0, A <- drawn anew        layer: x (W + s R)^T + s (x A^T) B^T

    In the paper the server stacks the factors, [B_1 ... B_m] [p_1 A_1; ...; p_m A_m], which is that sum, and each
    client adds it to its W. Here the products themselves are summed, by the round's one all-reduce: as many numbers as
    the adapted layers have, instead of m times as many as the adapters have. Nothing else is sent. So it works with
    secure aggregation, and the bytes do not grow with the cohort.
    Symbols: R = lora_residual in server.w, A_k, B_k = the factors in local.train(server.w).w, s = alpha / rank. The
    server optimizer's step is on R.
    """

    @property
    def traits(self) -> Traits:
        return replace(super().traits, moves_base=True, restarts=True)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"delta": self.uploaded(spec).dim}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        return Adapters.of(spec).without_factors()

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        adapters, result = Adapters.of(server.spec), local.train(server.w)
        delta = adapters.add_(result.delta.clone(), adapters.products(result.w))  # where R is, which no client changes
        return Update({"delta": delta[:, ~adapters.mask.to(delta.device)]}, self.weight(local)), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        adapters, delta = Adapters.of(server.spec), torch.zeros_like(server.w)
        delta[~adapters.mask.to(delta.device)] = mean.vectors["delta"]
        products = adapters.taken_(delta)
        after = self.moved(server, delta)
        adapters.add_(after.w, products)
        for i, (a, b) in enumerate(adapters.factors(after.w)):
            bound = 1 / sqrt(a.shape[1])  # as peft draws A: Kaiming-uniform with a = sqrt(5)
            drawn = torch.rand(a.shape, generator=generator(0, "flora", server.round, i), dtype=torch.float64)
            a.copy_((2 * drawn - 1) * bound)
            b.zero_()
        return after
