"""Federated averaging, and every method that differs from it only in the server's optimizer."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..optim import SGD, OptimizerState, ServerOptimizer
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import Algorithm, LocalTraining, Traits


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", Algorithm 1.

    w_{t+1} = w_t + sum_k (n_k / n) (w_k - w_t),   w_k = E epochs of SGD on client k from w_t

    written as a server optimizer's step on the pseudo-gradient -sum_k (n_k / n) delta_k (Reddi et al. 2021); SGD with
    lr 1 is the line above. Buffers (BatchNorm statistics) are averaged whatever the server optimizer is.
    Symbols: w_t = server.w, delta_k = w_k - w_t = local.train(server.w).delta, n_k = local.num_examples.
    """

    weighting: Annotated[
        Literal["auto", "examples", "tokens", "uniform"],
        Field(
            description="a client's weight in the mean: its examples, its tokens that are predicted (no padding, no "
            "prompts), or 1; auto = examples, 1 for client privacy"
        ),
    ] = "auto"
    server_optimizer: ServerOptimizer = SGD(lr=1.0)

    @property
    def traits(self) -> Traits:
        return Traits(weighting=self.weighting)

    def with_plain_mean(self) -> Self:
        return replace(self, weighting="uniform") if self.weighting == "auto" else self

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"delta": spec.dim}

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        state = self.server_optimizer.init([w[: spec.num_trainable]])
        return ServerState(w, spec, {name: vectors[0] for name, vectors in state.items()})

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        result = local.train(server.w)
        return Update({"delta": result.delta}, self.weight(local)), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        return self.moved(server, mean.vectors["delta"])

    def weight(self, local: LocalTraining) -> Tensor:
        """Of each client in the mean, [K]."""
        if self.weighting == "tokens":
            return local.counted
        return torch.ones_like(local.num_examples) if self.weighting == "uniform" else local.num_examples

    def share(self, mean: Mean, cohort: Cohort) -> float:
        """sum_S p_k over those that contributed; p_k, 1 / N or n_k / n, add up to 1 over the population."""
        return mean.weight / (cohort.population if self.weighting == "uniform" else mean.examples)

    def moved(self, server: ServerState, delta: Tensor, **own: Tensor) -> ServerState:
        """The server after its optimizer's step along ``delta [D]``, and what else it remembers from now on."""
        p, w = server.num_trainable, server.w.clone()
        state: OptimizerState = {name: [v.clone()] for name, v in server.extra.items() if name not in own}
        gradient = delta[:p].neg_()  # in place, and back: of a large model a copy is as large as all that is sent
        self.server_optimizer.step_([w[:p]], [gradient], state)
        gradient.neg_()
        w[p:] += delta[p:]
        extra = {**{name: vectors[0] for name, vectors in state.items()}, **own}
        return replace(server, w=w, extra=extra, round=server.round + 1)
