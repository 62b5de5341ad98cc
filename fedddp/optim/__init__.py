"""Optimizers as algebra on vectors, used on the client (local steps) and on the server (pseudo-gradients) alike.

An optimizer is its hyper-parameters; what it remembers is passed in. Tensors come as lists, so a flat vector is a
list of one and the layers of a module are a list of views: the elementwise algebra is the same.
"""

from typing import Annotated, Any

from pydantic import Field

from ..registry.choice import Choice
from .optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    OptimizerAround,
    OptimizerState,
    Scheduled,
    Yogi,
    scaled,
)
from .schedule import CONSTANT, SCHEDULES, LearningRate, in_steps

OPTIMIZERS: dict[str, type] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "adagrad": Adagrad, "yogi": Yogi}

Schedule = Annotated[LearningRate, Choice(SCHEDULES, {"name": "constant"})]
ClientOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd"})]
REDDI: dict[str, Any] = {"lr": 0.01, "eps": 1e-3, "initial_accumulator": 1e-6}
"""Reddi et al. 2021, Algorithm 2: tau is 1e-3 and v_0 = tau^2. Their learning rates are tuned for each task."""
ADAPTIVE_SERVERS = {
    "adam": {**REDDI, "beta2": 0.99, "bias_correction": False},
    "yogi": REDDI,
    "adagrad": REDDI,
}
ServerOptimizer = Annotated[
    Optimizer,
    Choice(OPTIMIZERS, {"name": "sgd", "lr": 1.0}, others=ADAPTIVE_SERVERS),
    Field(description="the optimizer of the server, on the mean update"),
]
"""lr 1: the server moves by the whole mean update, which is plain federated averaging. Adam, Yogi and Adagrad are
FedAdam, FedYogi and FedAdagrad here; on clients they keep torch.optim's defaults."""

__all__ = [
    "CONSTANT",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "ClientOptimizer",
    "LearningRate",
    "Optimizer",
    "OptimizerAround",
    "OptimizerState",
    "Schedule",
    "Scheduled",
    "ServerOptimizer",
    "Yogi",
    "in_steps",
    "scaled",
]
