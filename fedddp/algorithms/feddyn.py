"""FedDyn: a regulariser that each client carries along makes its optimum agree with everybody's."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import UNCUT, LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedDyn(FedAvg):
    """Acar et al. 2021, "Federated learning based on dynamic regularization", Algorithm 1.

    theta_k = argmin L_k(theta) - <grad_k, theta> + (alpha / 2) |theta - theta_t|^2, approached by local steps
    grad_k <- grad_k - alpha (theta_k - theta_t);   h <- h - alpha sum_{k in P} p_k (theta_k - theta_t)
    theta_{t+1} = mean_P theta_k - h / alpha

    At a fixed point theta_k = theta_t for all k and h = 0 is the mean of the gradients: a stationary point of the
    whole, however few local steps there are.
    Symbols: theta_t = server.w, theta_k - theta_t = result.delta, grad_k = client["gradient"], h = server.extra["h"],
    alpha = self.alpha, P = cohort. The move theta_{t+1} - theta_t is the server optimizer's to take; its lr is 1 in
    the paper. Weights as in SCAFFOLD: p_k = 1 / m as in the paper (m = cohort.population), or n_k / n (``examples``),
    in the mean over P too. Whoever takes part, h = sum_k p_k grad_k, and sum_k p_k L_k is minimised.

    ``alpha_by_size``: client k has alpha_k = alpha (n / m) / n_k, as in the authors' code. Then h = sum_k (n_k / n)
    grad_k with p_k = 1 / m in all means: sum_k (n_k / n) L_k is minimised.
    """

    weighting: Annotated[
        Literal["uniform", "examples"], Field(description="a client's weight in the mean: 1, or its examples")
    ] = "uniform"
    alpha: Annotated[float, Field(gt=0, le=1e9, description="strength of the dynamic regulariser")] = 0.01
    alpha_by_size: Annotated[
        bool,
        Field(description="a client's alpha is divided by its examples over the mean client's (the authors' code)"),
    ] = False

    def __post_init__(self) -> None:
        if self.alpha_by_size and self.weighting == "examples":
            raise ValueError("alpha_by_size=true: weighting=examples would count examples twice; use weighting=uniform")

    @property
    def traits(self) -> Traits:
        """What is clipped or lost parts h from the mean of the grad_k for good: the optimum is missed by as much."""
        return replace(super().traits, clippable=False, deliveries=UNCUT)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = super().init_server(w, spec)
        return replace(server, extra={**server.extra, "h": torch.zeros_like(w[: spec.num_trainable])})

    def init_client(self, server: ServerState) -> ClientState:
        return {"gradient": torch.zeros_like(server.w).unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        p, gradient, alpha = server.num_trainable, client["gradient"], self._alpha(local).to(server.w)  # [K, 1]
        linear = gradient[:, :p] + alpha * server.w[:p]  # [K, P]
        result = local.train(server.w, lambda g, w: g - linear + alpha * w)
        after = gradient - alpha * result.delta
        after[:, p:] = 0  # buffers have no gradient
        return Update({"delta": result.delta}, self.weight(local)), {"gradient": after}, result

    def _alpha(self, local: LocalTraining) -> Tensor:
        """alpha_k of each client, [K, 1]."""
        sizes = local.num_examples.double().clamp(min=1)
        return (self.alpha * (local.mean_examples / sizes if self.alpha_by_size else torch.ones_like(sizes)))[:, None]

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        delta, p = mean.vectors["delta"].clone(), server.num_trainable
        h = server.extra["h"] - self.alpha * self.share(mean, cohort) * delta[:p]
        delta[:p] -= h / self.alpha
        return self.moved(server, delta, h=h)
