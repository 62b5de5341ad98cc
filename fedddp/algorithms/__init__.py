"""Federated algorithms, one paper a file. An algorithm's dataclass is its own configuration section."""

from .apfl import APFL
from .base import Algorithm, LocalTraining
from .client_level import AdaptiveClip, ClientLevel
from .ditto import Ditto
from .fedavg import FedAvg
from .fedbn import FedBN
from .fedper import FedPer
from .fedrep import FedRep
from .ifca import IFCA
from .personal import INNER, Personal

ALGORITHMS: dict[str, type] = {"fedavg": FedAvg, "ditto": Ditto, "apfl": APFL, "ifca": IFCA}
INNER.update(ALGORITHMS)  # a wrapper is not offered inside a wrapper: one mask says it all
ALGORITHMS |= {"personal": Personal, "fedbn": FedBN, "fedper": FedPer, "fedrep": FedRep}

__all__ = [
    "ALGORITHMS",
    "APFL",
    "IFCA",
    "AdaptiveClip",
    "Algorithm",
    "ClientLevel",
    "Ditto",
    "FedAvg",
    "FedBN",
    "FedPer",
    "FedRep",
    "LocalTraining",
    "Personal",
]
