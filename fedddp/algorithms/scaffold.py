"""SCAFFOLD: control variates take the drift of heterogeneous clients out of their local steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..optim import Optimizer
from ..types import ClientState, Cohort, LocalResult, Mean, ServerState, Update
from .base import LocalTraining
from .fedavg import FedAvg


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning", Algorithm 1.

    y <- y - eta_l (g_i(y) - c_i + c) in K local steps from x;   c_i+ = c_i - c + (x - y_i) / (K eta_l)   (option II)
    x <- x + eta_g mean_S (y_i - x);                             c <- c + (|S| / N) mean_S (c_i+ - c_i)

    Symbols: x = server.w, y_i - x = result.delta, c = server.extra["control"], c_i = client["control"], eta_g the
    server optimizer's lr, K eta_l = local.optimizer.gradient_weight(steps), which under momentum counts how often a
    gradient moved y: (x - y_i) / (K eta_l) is then still a mean of gradients. Both directions carry two vectors.
    Weights: uniform, as in the paper, so that c = (1 / N) sum_i c_i whoever takes part, and (1 / N) sum_i F_i is
    minimised. ``examples`` minimises sum_i (n_i / n) F_i; c is the mean with those weights if all take part, and
    follows it approximately otherwise.
    """

    weighting: Annotated[
        Literal["uniform", "examples"], Field(description="a client's weight in both means: 1, or its examples")
    ] = "uniform"

    def unfit(self, optimizer: Optimizer, privacy: str) -> str | None:
        if optimizer.gradient_weight(torch.ones(1)) is None:
            return (
                f"a client's control is its mean gradient, which {type(optimizer).__name__}'s steps do not tell; use "
                "client.optimizer.name=sgd"
            )
        if privacy == "client":  # c - mean c_i is never made good: the optimum is missed by as much gradient
            return "clip and noise would part c from the mean of the c_i for good; use fedavg with privacy.level=client"
        return None

    def vectors(self, dim: int) -> dict[str, int]:
        return {"delta": dim, "control": dim}

    def init_server(self, w: Tensor, num_trainable: int) -> ServerState:
        server = super().init_server(w, num_trainable)
        return replace(server, extra={**server.extra, "control": torch.zeros_like(w)})

    def init_client(self, w: Tensor) -> ClientState:
        return {"control": torch.zeros_like(w).unsqueeze(0)}

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        p, c, c_k = server.num_trainable, server.extra["control"], client["control"]
        shift = (c - c_k)[:, :p]  # [K, P]
        result = local.train(server.w, lambda g, w: g + shift)
        moved_by = local.optimizer.gradient_weight(result.steps)
        assert moved_by is not None  # see `unfit`
        change = -c - result.delta / moved_by.to(result.delta)[:, None]  # c_k+ - c_k, [K, D]
        change[:, p:] = 0  # buffers have no gradient
        change[result.steps == 0] = 0
        return Update({"delta": result.delta, "control": change}, self.weight(local)), {"control": c_k + change}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        c = server.extra["control"] + self.share(mean, cohort) * mean.vectors["control"]
        return self.moved(server, mean.vectors["delta"], control=c)
