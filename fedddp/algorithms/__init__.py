"""Federated algorithms, one paper a file. An algorithm's dataclass is its own configuration section."""

from .adapters import AdapterError, Adapters, adapted
from .apfl import APFL
from .base import Algorithm, Around, LocalTraining, Traits
from .canaries import CanaryClients
from .client_level import ClientLevel, QuantileClip
from .continued import ContinuedOrder, KeptOptimizer, Resumed
from .ditto import Ditto
from .fedavg import FedAvg
from .fedbn import FedBN
from .feddyn import FedDyn
from .fedex_lora import FedExLoRA
from .fednova import FedNova
from .fedper import FedPer
from .fedprox import FedProx
from .fedrep import FedRep
from .ffa_lora import FFALoRA
from .flora import FLoRA
from .hetlora import HetLoRA
from .history import FIRST_MODEL, LAST, LAST_MODEL, ClientMomentum, LastMean, LastModels
from .ifca import IFCA
from .moon import Moon
from .personal import INNER, Personal
from .qffl import QFFL
from .scaffold import Scaffold
from .streaming_diloco import StreamingDiLoCo

ALGORITHMS: dict[str, type] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "qffl": QFFL,
    "moon": Moon,
    "ditto": Ditto,
    "apfl": APFL,
    "ifca": IFCA,
}
INNER.update(ALGORITHMS)  # a wrapper is not offered inside a wrapper: one mask says it all
ALGORITHMS |= {"personal": Personal, "fedbn": FedBN, "fedper": FedPer, "fedrep": FedRep}
ADAPTED: dict[str, type] = {"ffa_lora": FFALoRA, "flora": FLoRA, "fedex_lora": FedExLoRA, "hetlora": HetLoRA}
"""Algorithms of models with low-rank adapters."""
ALGORITHMS |= ADAPTED
ALGORITHMS |= {"streaming_diloco": StreamingDiLoCo}  # nor one whose fragments would mix what is private with the rest

__all__ = [
    "ADAPTED",
    "ALGORITHMS",
    "APFL",
    "FIRST_MODEL",
    "IFCA",
    "LAST",
    "LAST_MODEL",
    "QFFL",
    "AdapterError",
    "Adapters",
    "Algorithm",
    "Around",
    "CanaryClients",
    "ClientLevel",
    "ClientMomentum",
    "ContinuedOrder",
    "Ditto",
    "FFALoRA",
    "FLoRA",
    "FedAvg",
    "FedBN",
    "FedDyn",
    "FedExLoRA",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "HetLoRA",
    "KeptOptimizer",
    "LastMean",
    "LastModels",
    "LocalTraining",
    "Moon",
    "Personal",
    "QuantileClip",
    "Resumed",
    "Scaffold",
    "StreamingDiLoCo",
    "Traits",
    "adapted",
]
