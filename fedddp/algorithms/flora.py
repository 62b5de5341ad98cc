"""FLoRA: the exact mean of all clients' adapters goes into the layer, and adapters begin anew each round."""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

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
        return replace(super().traits, moves_base=True)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"product": self.uploaded(spec).dim}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        return Adapters.of(spec).uploaded()

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        state = self.server_optimizer.init([w.new_zeros(self.uploaded(spec).dim)])
        return ServerState(w, spec, {name: vectors[0] for name, vectors in state.items()})

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        result = local.train(server.w)
        return Update({"product": Adapters.of(server.spec).products(result.w)}, self.weight(local)), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        adapters, w, step = Adapters.of(server.spec), server.w.clone(), torch.zeros_like(mean.vectors["product"])
        state = {name: [v.clone()] for name, v in server.extra.items()}
        self.server_optimizer.step_([step], [-mean.vectors["product"]], state)
        adapters.add_(w, step)
        for i, (a, b) in enumerate(adapters.factors(w)):
            bound = 1 / sqrt(a.shape[1])  # as peft draws A: Kaiming-uniform with a = sqrt(5)
            drawn = torch.rand(a.shape, generator=generator(0, "flora", server.round, i), dtype=torch.float64)
            a.copy_((2 * drawn - 1) * bound)
            b.zero_()
        return replace(server, w=w, extra={name: v[0] for name, v in state.items()}, round=server.round + 1)
