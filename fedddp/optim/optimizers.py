"""Optimizers on lists of tensors: their interface, SGD with momentum, and the adaptive Adam, AdamW, Yogi, Adagrad.

m <- beta1 m + (1 - beta1) g;  v <- a running square of g;  w <- w - lr m / (sqrt(v) + eps)

The classes' defaults are torch.optim's, for clients, with Adam's bias correction: m / (1 - beta1^t) and v / (1 -
beta2^t) stand for m and v. As a server's optimizer they default to Reddi et al. 2021, "Adaptive federated
optimization", Algorithm 2 (FedAdam, FedYogi, FedAdagrad): no bias correction, beta2 0.99, tau = ``eps`` = 1e-3, v_0 =
``initial_accumulator`` = tau^2; see `fedddp.optim`. Their -g is the mean update.

``step`` counts, [1] for each of the tensors and always on the CPU, since its value is needed there: rows that are done
are not counted on, and a checkpoint holds it like any other vector.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

OptimizerState = dict[str, list[Tensor]]
"""name -> one tensor for each of the parameters."""


class Optimizer(Protocol):
    """``init`` makes the state for ``params``; ``step_`` changes ``params`` and ``state`` in place."""

    @property
    def plain_lr(self) -> float | None:
        """The lr of ``w <- w - lr g`` if a step is that and no more: it can then be taken layer by layer."""
        ...

    def gradient_weight(self, steps: Tensor) -> Tensor | None:
        """How much of a constant gradient ``steps`` steps move ``w`` by: sum_t a_t, where w_0 - w = sum_t a_t g_t.

        None if a step is not linear in the gradients. Weight decay counts as part of the gradient.
        """
        ...

    def init(self, params: list[Tensor]) -> OptimizerState: ...

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None: ...


class OptimizerAround(ABC):
    """A wrapper of an optimizer, by which an algorithm moves flat vectors otherwise than ``inner`` alone would."""

    def __init__(self, inner: Optimizer) -> None:
        self._inner = inner

    @property
    def plain_lr(self) -> None:
        return None

    def gradient_weight(self, steps: Tensor) -> Tensor | None:
        """See `Optimizer.gradient_weight`."""
        return self._inner.gradient_weight(steps)

    @abstractmethod
    def init(self, params: list[Tensor]) -> OptimizerState:
        """See `Optimizer`."""

    @abstractmethod
    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        """See `Optimizer`."""


def scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """``optimizer`` with ``factor`` times its learning rate. Raises ValueError if it has no field ``lr``."""
    if factor == 1:
        return optimizer
    section: Any = optimizer
    if "lr" not in getattr(section, "__dataclass_fields__", ()):
        raise ValueError(f"{type(optimizer).__name__} has no lr that a schedule could change")
    return dataclasses.replace(section, lr=section.lr * factor)


class Scheduled(OptimizerAround):
    """``inner`` with ``factor(i)`` times its learning rate in step i = 0, 1, ... of a training.

    Those who are still at work have taken the same number of steps. `gradient_weight` is None: steps differ in length.
    """

    def __init__(self, inner: Optimizer, factor: Callable[[int], float] = lambda i: 1.0) -> None:
        super().__init__(inner)
        self._factor = factor

    def gradient_weight(self, steps: Tensor) -> None:
        return None

    def init(self, params: list[Tensor]) -> OptimizerState:
        return {**self._inner.init(params), "schedule.step": [torch.zeros(1) for _ in params]}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        if not params:
            return
        counts = state["schedule.step"]
        scaled(self._inner, self._factor(int(counts[0]))).step_(params, grads, state)
        torch._foreach_add_(counts, 1)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as torch.optim.SGD computes it.

    g <- g + weight_decay w;  v <- momentum v + g (v starts as g);  w <- w - lr (g + momentum v if nesterov else v)
    """

    lr: Annotated[float, Field(gt=0, le=1e9, description="learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the running gradient")] = 0.0
    nesterov: Annotated[bool, Field(description="look ahead along the momentum")] = False
    weight_decay: Annotated[float, Field(ge=0, le=1e9, description="L2 penalty added to the gradient")] = 0.0

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


LR = Field(gt=0, le=1e9, description="learning rate")
MEAN = Field(ge=0, lt=1, description="decay of the running gradient")
SQUARE = Field(ge=0, lt=1, description="decay of the running square")
FLOOR = Field(gt=0, le=1e9, description="added to the root of the square; tau of Reddi et al. on a server (1e-3)")
PENALTY = Field(ge=0, le=1e9, description="L2 penalty added to the gradient")
CORRECTED = Field(description="undo the start of both running means at 0; false for a server as in Reddi et al.")
ACCUMULATOR = Field(ge=0, le=1e9, description="the square to begin with; tau^2 or 0 in Reddi et al.")


class _Adaptive:
    """Adaptive steps are no sum of gradients, and are not taken layer by layer."""

    @property
    def plain_lr(self) -> float | None:
        return None

    def gradient_weight(self, steps: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Adam(_Adaptive):
    """Kingma and Ba 2015, as torch.optim.Adam computes it: v <- beta2 v + (1 - beta2) g^2."""

    lr: Annotated[float, LR] = 1e-3
    beta1: Annotated[float, MEAN] = 0.9
    beta2: Annotated[float, SQUARE] = 0.999
    eps: Annotated[float, FLOOR] = 1e-8
    weight_decay: Annotated[float, PENALTY] = 0.0
    bias_correction: Annotated[bool, CORRECTED] = True
    initial_accumulator: Annotated[float, ACCUMULATOR] = 0.0

    def init(self, params: list[Tensor]) -> OptimizerState:
        counts = {"step": [p.new_zeros(1, dtype=torch.float32, device="cpu") for p in params]}
        means = [torch.zeros_like(p) for p in params]
        return {**counts, "mean": means, "square": [torch.full_like(p, self.initial_accumulator) for p in params]}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        if not params:
            return
        grads = self._decayed(params, grads)
        mean, square = state["mean"], state["square"]
        torch._foreach_lerp_(mean, grads, 1 - self.beta1)
        self._square_(square, grads)
        torch._foreach_add_(state["step"], 1)
        sizes, roots = [-self.lr] * len(params), torch._foreach_sqrt(square)
        if self.bias_correction:
            counts = [float(step) for step in state["step"]]
            torch._foreach_div_(roots, [(1 - self.beta2**t) ** 0.5 for t in counts])
            sizes = [-self.lr / (1 - self.beta1**t) for t in counts]
        torch._foreach_add_(roots, self.eps)
        torch._foreach_addcdiv_(params, mean, roots, sizes)

    def _decayed(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The gradients with the penalty's; or the parameters decayed, in place."""
        return list(torch._foreach_add(grads, params, alpha=self.weight_decay)) if self.weight_decay else grads

    def _square_(self, square: list[Tensor], grads: list[Tensor]) -> None:
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - self.beta2)


@dataclass(frozen=True)
class AdamW(Adam):
    """Loshchilov and Hutter 2019, as torch.optim.AdamW computes it: w <- (1 - lr weight_decay) w first."""

    weight_decay: Annotated[
        float, Field(ge=0, le=1e9, description="decay of the parameters, times lr, in every step")
    ] = 0.01

    def _decayed(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        torch._foreach_mul_(params, 1 - self.lr * self.weight_decay)
        return grads


@dataclass(frozen=True)
class Yogi(Adam):
    """Zaheer et al. 2018: v <- v - (1 - beta2) g^2 sign(v - g^2). The defaults are for a server (Reddi et al. 2021)."""

    lr: Annotated[float, LR] = 0.01
    beta2: Annotated[float, SQUARE] = 0.99
    eps: Annotated[float, FLOOR] = 1e-3
    bias_correction: Annotated[bool, CORRECTED] = False
    initial_accumulator: Annotated[float, ACCUMULATOR] = 1e-6

    def _square_(self, square: list[Tensor], grads: list[Tensor]) -> None:
        new = torch._foreach_mul(grads, grads)
        signs = [torch.sign(v - g) for v, g in zip(square, new, strict=True)]
        torch._foreach_addcmul_(square, signs, new, self.beta2 - 1)


@dataclass(frozen=True)
class Adagrad(_Adaptive):
    """Duchi et al. 2011, as torch.optim.Adagrad computes it: v <- v + g^2, w <- w - lr g / (sqrt(v) + eps)."""

    lr: Annotated[float, LR] = 0.01
    eps: Annotated[float, FLOOR] = 1e-10
    weight_decay: Annotated[float, PENALTY] = 0.0
    initial_accumulator: Annotated[float, ACCUMULATOR] = 0.0

    def init(self, params: list[Tensor]) -> OptimizerState:
        return {"square": [torch.full_like(p, self.initial_accumulator) for p in params]}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        if not params:
            return
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, params, alpha=self.weight_decay))
        torch._foreach_addcmul_(state["square"], grads, grads, 1)
        roots = torch._foreach_sqrt(state["square"])
        torch._foreach_add_(roots, self.eps)
        torch._foreach_addcdiv_(params, grads, roots, -self.lr)
