"""Datasets, partitions of their examples over clients, and the order in which a client uses its own."""

from .batches import MOST_PLANNED, BatchPlan, Work, extreme_batches, num_steps, plan
from .clients import ClientData, Placement, sent
from .datasets import DATASETS, Dataset, Examples, load
from .inputs import Normalizer, check_range
from .partition import PARTITIONS, Excerpt, Partition, Partitioner, given, write_partition
from .parts import Parts
from .readers import READERS
from .skew import SKEWS, NoSkew, Skew
from .tables import table

DATASETS |= {"parts": Parts(), "csv": table, "parquet": table, **READERS}  # here: their files build on the others

__all__ = [
    "DATASETS",
    "MOST_PLANNED",
    "PARTITIONS",
    "SKEWS",
    "BatchPlan",
    "ClientData",
    "Dataset",
    "Examples",
    "Excerpt",
    "NoSkew",
    "Normalizer",
    "Partition",
    "Partitioner",
    "Parts",
    "Placement",
    "Skew",
    "Work",
    "check_range",
    "extreme_batches",
    "given",
    "load",
    "num_steps",
    "plan",
    "sent",
    "write_partition",
]
