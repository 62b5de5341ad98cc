"""An algorithm of one's own: what a client does and what the server does, as vector algebra."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from fedddp.algorithms import FedAvg
from fedddp.types import Update


@dataclass(frozen=True)
class Steady(FedAvg):
    """FedAvg with clients held near the global model, and a server that remembers where it was going.

    client   w_k <- w_k - lr (g + mu (w_k - w_t))          from w_t, for E epochs
    server   m_{t+1} = beta m_t + sum_k (n_k / n) (w_k - w_t)
             w_{t+1} = w_t + m_{t+1}

    mu = 0 and beta = 0 is FedAvg. Fields are keys of [algorithm]. What the server remembers is passed in and returned,
    so that it is in every checkpoint.
    """

    mu: Annotated[float, Field(ge=0, description="pull of a client towards the global model")] = 0.01
    beta: Annotated[float, Field(ge=0, lt=1, description="momentum of the server")] = 0.5

    def init_server(self, w, spec):
        return replace(super().init_server(w, spec), extra={"m": torch.zeros_like(w)})

    def client_update(self, server, client, local):
        def correct(g, w):  # [K, P] each: K clients side by side, P trainable parameters
            return g + self.mu * (w - server.w[: w.shape[1]])

        result = local.train(server.w, correct)
        return Update({"delta": result.delta}, self.weight(local)), client, result

    def server_update(self, server, mean, cohort):
        m = self.beta * server.extra["m"] + mean.vectors["delta"]  # [D]
        return replace(server, w=server.w + m, extra={"m": m}, round=server.round + 1)
