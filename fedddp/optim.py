"""Optimizers as algebra on vectors, used on the client (local steps) and on the server (pseudo-gradients) alike.

An optimizer is its hyper-parameters; what it remembers is passed in. Tensors come as lists, so a flat vector is a
list of one and the layers of a module are a list of views: the elementwise algebra is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from .choice import Choice

OptimizerState = dict[str, list[Tensor]]


class Optimizer(Protocol):
    """``init`` makes the state for ``params``; ``step_`` changes ``params`` and ``state`` in place."""

    @property
    def plain_lr(self) -> float | None:
        """The lr of ``w <- w - lr g`` if a step is that and no more: it can then be taken layer by layer."""
        ...

    def init(self, params: list[Tensor]) -> OptimizerState: ...

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as torch.optim.SGD computes it.

    g <- g + weight_decay w;  v <- momentum v + g (v starts as g);  w <- w - lr (g + momentum v if nesterov else v)
    """

    lr: Annotated[float, Field(gt=0, description="learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the running gradient")] = 0.0
    nesterov: Annotated[bool, Field(description="look ahead along the momentum")] = False
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty added to the gradient")] = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true looks ahead along a momentum: set momentum above 0")

    @property
    def plain_lr(self) -> float | None:
        return None if self.momentum or self.weight_decay else self.lr

    def init(self, params: list[Tensor]) -> OptimizerState:
        return {"momentum": [torch.zeros_like(p) for p in params]} if self.momentum else {}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, params, alpha=self.weight_decay))
        if self.momentum:
            velocity = state["momentum"]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, grads)
            grads = list(torch._foreach_add(grads, velocity, alpha=self.momentum)) if self.nesterov else velocity
        torch._foreach_add_(params, grads, alpha=-self.lr)


OPTIMIZERS: dict[str, type] = {"sgd": SGD}

ClientOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd"})]
ServerOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd", "lr": 1.0})]
"""lr 1: the server moves by the whole mean update, which is plain federated averaging."""
