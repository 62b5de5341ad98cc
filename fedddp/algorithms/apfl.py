"""APFL: a mixture of a model of one's own and the global one, the share learned."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..optim import Optimizer, OptimizerAround, OptimizerState
from ..types import ClientState, ClientUpdate, ServerState
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class APFL(FedAvg):
    """Deng, Kamani, Mahdavi 2020, "Adaptive personalized federated learning", Algorithm 1.

        vbar_k  =  alpha_k v_k + (1 - alpha_k) w
        v_k     <- v_k - eta alpha_k grad f_k(vbar_k)
        alpha_k <- alpha_k - eta_alpha <v_k - w, grad f_k(vbar_k)>, once a round, on its first batch; kept in [0, 1]

    beside federated averaging of w. What is trained is vbar_k; the client optimizer moves v_k, on the gradient
    alpha_k grad f_k(vbar_k), and vbar_k follows (`_Mixture`).
    Symbols: v_k = client["v"], alpha_k = client["alpha"], w = server.w, eta_alpha = alpha_lr.

    Differences from Algorithm 1. The w in the mixture is w_t during all of a round's steps; there it is client k's own
    w_k^(t, step), which moves along with v_k. Both are the same for one local step, and differ by O(eta) per step
    beyond. alpha_k changes after the round's steps, from its first gradient, not before them. Before client k first
    takes part, v_k is w_t. Weight decay acts on v_k; an adaptive client optimizer takes out the factor alpha_k.
    The buffers of vbar_k (BatchNorm statistics) are the client's own: a mixture of variances could be negative.
    """

    alpha: Annotated[float, Field(ge=0, le=1, description="initial alpha_k, the weight of the personal model")] = 0.5
    alpha_lr: Annotated[float, Field(ge=0, le=1e9, description="step size of alpha_k; 0 = alpha_k stays as it is")] = (
        0.1
    )

    @property
    def traits(self) -> Traits:
        return replace(super().traits, trainings=2)

    def init_client(self, server: ServerState) -> ClientState:
        return {"v": server.w.unsqueeze(0), "alpha": server.w.new_full((1, 1), self.alpha)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, _, result = super().client_update(server, client, local)
        p, v, alpha, slope = server.num_trainable, client["v"], client["alpha"], []  # [K, D], [K, 1]
        apart = (v - server.w)[:, :p]

        def correct(g: Tensor, vbar: Tensor) -> Tensor:
            if not slope:  # the first batch, at vbar_k as the round finds it
                slope.append((apart * g).sum(dim=1, keepdim=True))
            return alpha * g

        v = v.clone()
        optimizer = _Mixture(local.optimizer, v[:, :p], alpha, server.w[:p])
        mixed = local.train(self.personal_params(server, client), correct, optimizer=optimizer)
        v[:, p:] = mixed.w[:, p:]
        alpha = (alpha - self.alpha_lr * slope[0]).clamp(0, 1) if slope else alpha
        return update, {"v": v, "alpha": alpha}, result

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        p, v = server.num_trainable, client["v"]
        return torch.cat([torch.lerp(server.w[:p], v[:, :p], client["alpha"]), v[:, p:]], dim=1)


class _Mixture(OptimizerAround):
    """``inner``, moving the rows of ``v [K, P]`` in place; what is trained becomes alpha_k v_k + (1 - alpha_k) w.

    v_k could not be read off that mixture: a small alpha_k leaves its steps few digits, or none.
    """

    def __init__(self, inner: Optimizer, v: Tensor, alpha: Tensor, w: Tensor) -> None:
        super().__init__(inner)
        self._w, self._rows, self._alphas = w, list(v), list(alpha)

    def init(self, params: list[Tensor]) -> OptimizerState:
        return {**self._inner.init(self._rows), "apfl.v": self._rows, "apfl.alpha": self._alphas}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        self._inner.step_(state["apfl.v"], grads, state)
        for p, v, alpha in zip(params, state["apfl.v"], state["apfl.alpha"], strict=True):
            p.copy_(torch.lerp(self._w, v, alpha))
