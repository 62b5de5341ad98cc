"""Datasets, how they are dealt out to clients, and the order in which a client goes through its own."""

from .batches import Plan, num_steps, plan
from .clients import ClientData, Normalizer, Placement, sent
from .datasets import DATASETS, Dataset, Examples
from .partition import PARTITIONS, Excerpt, Partition, Partitioner
from .parts import Parts
from .work import Work

DATASETS["parts"] = Parts()  # here, since its file builds on that of the others

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "ClientData",
    "Dataset",
    "Examples",
    "Excerpt",
    "Normalizer",
    "Partition",
    "Partitioner",
    "Parts",
    "Placement",
    "Plan",
    "Work",
    "num_steps",
    "plan",
    "sent",
]
