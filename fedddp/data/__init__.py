"""Datasets, how they are dealt out to clients, and the order in which a client goes through its own."""

from .batches import Plan, plan
from .clients import ClientData, Normalizer
from .datasets import DATASETS, Dataset, Examples
from .partition import PARTITIONS, Partition, Partitioner

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "ClientData",
    "Dataset",
    "Examples",
    "Normalizer",
    "Partition",
    "Partitioner",
    "Plan",
    "plan",
]
