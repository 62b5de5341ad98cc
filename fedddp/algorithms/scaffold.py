"""SCAFFOLD: control variates take the drift of heterogeneous clients out of their local steps."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, ClientUpdate, Cohort, LocalResult, Mean, ServerState, Update
from .base import UNCUT, LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning", Algorithm 1.

    y <- y - eta_l (g_i(y) - c_i + c) in K local steps from x;   c_i+ = c_i - c + (x - y_i) / (K eta_l)   (option II)
    x <- x + eta_g mean_S (y_i - x);                             c <- c + sum_{i in S} p_i (c_i+ - c_i)

    Symbols: x = server.w, y_i - x = result.delta, c = server.extra["control"], c_i = client["control"], eta_g the
    server optimizer's lr, K eta_l = local.optimizer.gradient_weight(steps), which under momentum counts how often a
    gradient moved y: (x - y_i) / (K eta_l) is then still a mean of gradients. Both directions carry two vectors.
    Weights: p_i = 1 / N as in the paper, or n_i / n (``examples``), in the mean over S too. Whoever takes part,
    c = sum_i p_i c_i, and sum_i p_i F_i is minimised. ``control_weighting=uniform`` has p_i = 1 / N in c alone: with
    ``weighting=examples`` that is NIID-Bench's mixture (Li et al. 2022). It stands still where all c_i are the clients'
    gradients and c = 0, hence at the minimum of (1 / N) sum_i F_i, however x is weighted.

    ``option=1`` has c_i+ = g_i(x), the mean gradient of one more pass over a client's batches (option I): any client
    optimizer will do.
    """

    weighting: Annotated[
        Literal["uniform", "examples"], Field(description="a client's weight in both means: 1, or its examples")
    ] = "uniform"
    control_weighting: Annotated[
        Literal["same", "uniform"],
        Field(description="a client's weight in the control variate: as weighting says, or 1 (NIID-Bench)"),
    ] = "same"
    option: Annotated[
        Literal[1, 2],
        Field(
            description="what a client's control becomes: 1 = its gradient at the round's model, 2 = that of its steps"
        ),
    ] = 2

    @property
    def traits(self) -> Traits:
        """What is clipped or lost parts c from the mean of the c_i for good: the optimum is missed by as much."""
        return replace(super().traits, trainings=2 if self.option == 1 else 1, clippable=False, deliveries=UNCUT)

    def unfit(self, optimizer: Optimizer) -> str | None:
        if self.option == 2 and optimizer.gradient_weight(torch.ones(1)) is None:
            return (
                f"a client's control is its mean gradient, which {type(optimizer).__name__}'s steps do not tell; use "
                "client.optimizer.name=sgd, or algorithm.option=1"
            )
        return None

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {"delta": spec.dim, "control": spec.dim}

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = super().init_server(w, spec)
        return replace(server, extra={**server.extra, "control": torch.zeros_like(w)})

    def init_client(self, server: ServerState) -> ClientState:
        return {"control": torch.zeros_like(server.w).unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        p, c, c_k = server.num_trainable, server.extra["control"], client["control"]
        shift = (c - c_k)[:, :p]  # [K, P]
        result = local.train(server.w, lambda g, w: g + shift)
        change = local.gradient(server.w) - c_k if self.option == 1 else self._of_steps(c, result, local.optimizer)
        change[:, p:] = 0  # buffers have no gradient
        change[result.steps == 0] = 0
        weight, sent = self.weight(local), change
        if self.control_weighting == "uniform":
            sent = change / weight.clamp(min=1).to(change)[:, None]  # the sum of n_i sent_i is that of the changes
        return Update({"delta": result.delta, "control": sent}, weight), {"control": c_k + change}, result

    def _of_steps(self, c: Tensor, result: LocalResult, optimizer: Optimizer) -> Tensor:
        """c_k+ - c_k by option II, [K, D]."""
        moved_by = optimizer.gradient_weight(result.steps)
        assert moved_by is not None  # see `unfit`
        return -c - result.delta / moved_by.to(result.delta)[:, None]

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        uniform = self.control_weighting == "uniform"
        share = mean.weight / cohort.population if uniform else self.share(mean, cohort)
        return self.moved(
            server, mean.vectors["delta"], control=server.extra["control"] + share * mean.vectors["control"]
        )
