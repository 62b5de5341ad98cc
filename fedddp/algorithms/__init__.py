"""Federated algorithms, one paper a file. An algorithm's dataclass is its own configuration section."""

from .base import Algorithm, LocalTraining
from .client_level import AdaptiveClip, ClientLevel
from .fedavg import FedAvg

ALGORITHMS: dict[str, type] = {"fedavg": FedAvg}

__all__ = ["ALGORITHMS", "AdaptiveClip", "Algorithm", "ClientLevel", "FedAvg", "LocalTraining"]
