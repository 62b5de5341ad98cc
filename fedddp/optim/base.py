"""The interface of optimizers: hyper-parameters, and algebra on lists of tensors."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

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
    if "lr" not in _fields(section):
        raise ValueError(f"{type(optimizer).__name__} has no lr that a schedule could change")
    return dataclasses.replace(section, lr=section.lr * factor)


def _fields(section: Any) -> Iterable[str]:
    return (f.name for f in dataclasses.fields(section)) if dataclasses.is_dataclass(section) else ()
