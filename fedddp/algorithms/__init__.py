"""Federated algorithms, one paper a file. An algorithm's dataclass is its own configuration section."""

from .base import Algorithm, LocalTraining
from .client_level import AdaptiveClip, ClientLevel
from .fedavg import FedAvg
from .feddyn import FedDyn
from .fednova import FedNova
from .fedprox import FedProx
from .moon import Moon
from .qffl import QFFL
from .scaffold import Scaffold

ALGORITHMS: dict[str, type] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "qffl": QFFL,
    "moon": Moon,
}

__all__ = [
    "ALGORITHMS",
    "QFFL",
    "AdaptiveClip",
    "Algorithm",
    "ClientLevel",
    "FedAvg",
    "FedDyn",
    "FedNova",
    "FedProx",
    "LocalTraining",
    "Moon",
    "Scaffold",
]
