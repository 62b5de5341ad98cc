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


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015, Algorithm 1: w <- w - lr m' / (sqrt(v') + eps), m and v running means of g and g^2.

    m' = m / (1 - beta1^t), v' = v / (1 - beta2^t); t is a tensor for each of ``params``, since clients trained together
    take different numbers of steps.
    """

    lr: Annotated[float, Field(gt=0, description="learning rate")] = 0.001
    beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the mean gradient")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the mean squared gradient")] = 0.999
    eps: Annotated[float, Field(gt=0, description="added to the root of the mean square")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty added to the gradient")] = 0.0

    @property
    def plain_lr(self) -> float | None:
        return None

    def init(self, params: list[Tensor]) -> OptimizerState:
        zeros = {name: [torch.zeros_like(p) for p in params] for name in ("first", "second")}
        return {**zeros, "step": [torch.zeros((), dtype=p.dtype, device=p.device) for p in params]}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, params, alpha=self.weight_decay))
        first, second, step = state["first"], state["second"], state["step"]
        torch._foreach_add_(step, 1.0)
        torch._foreach_lerp_(first, grads, 1 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - self.beta2)
        for p, m, v, t in zip(params, first, second, step, strict=True):
            p.sub_(self.lr / (1 - self.beta1**t) * m / ((v / (1 - self.beta2**t)).sqrt_() + self.eps))


OPTIMIZERS: dict[str, type] = {"sgd": SGD, "adam": Adam}

ClientOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd"})]
ServerOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd", "lr": 1.0})]
"""lr 1: the server moves by the whole mean update, which is plain federated averaging."""
