"""Compressions: sums that send less, one paper per file. A compression's dataclass is its configuration section."""

from .base import Columns, Compression, Memory, NoCompression, Setting
from .int8 import Int8
from .power_sgd import PowerSGD
from .random_k import RandomK
from .top_k import TopK

COMPRESSIONS: dict[str, type] = {
    "none": NoCompression,
    "int8": Int8,
    "random_k": RandomK,
    "top_k": TopK,
    "power_sgd": PowerSGD,
}

__all__ = [
    "COMPRESSIONS",
    "Columns",
    "Compression",
    "Int8",
    "Memory",
    "NoCompression",
    "PowerSGD",
    "RandomK",
    "Setting",
    "TopK",
]
