"""Stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .base import OptimizerState


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

    def gradient_weight(self, steps: Tensor) -> Tensor | None:
        """lr tau; under momentum rho each gradient counts 1 + rho + rho^2 + ... times, in what steps are left.

        So it is lr (tau - s) / (1 - rho), s = rho (1 - rho^tau) / (1 - rho); nesterov: lr tau, and rho of that.
        """
        tau, rho = steps.double(), self.momentum
        with_momentum = self.lr * (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        return self.lr * tau + rho * with_momentum if self.nesterov else with_momentum

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
