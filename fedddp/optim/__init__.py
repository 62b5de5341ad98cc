"""Optimizers as algebra on vectors, used on the client (local steps) and on the server (pseudo-gradients) alike.

An optimizer is its hyper-parameters; what it remembers is passed in. Tensors come as lists, so a flat vector is a
list of one and the layers of a module are a list of views: the elementwise algebra is the same.
"""

from typing import Annotated

from ..choice import Choice
from .adaptive import Adagrad, Adam, AdamW, Yogi
from .base import Optimizer, OptimizerState, scaled
from .schedule import CONSTANT, SCHEDULES, LearningRate
from .sgd import SGD

OPTIMIZERS: dict[str, type] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "adagrad": Adagrad, "yogi": Yogi}

Schedule = Annotated[LearningRate, Choice(SCHEDULES, {"name": "constant"})]
ClientOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd"})]
ServerOptimizer = Annotated[Optimizer, Choice(OPTIMIZERS, {"name": "sgd", "lr": 1.0})]
"""lr 1: the server moves by the whole mean update, which is plain federated averaging."""

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
    "OptimizerState",
    "Schedule",
    "ServerOptimizer",
    "Yogi",
    "scaled",
]
