"""Partitions by name: rules that assign training examples to clients. See docs/partitions.md."""

from .base import Excerpt, Ints, Partition, Partitioner
from .drawn import IID, Dirichlet, DirichletLabels, Labels, Overlapping, Quantity, Shards, Similarity
from .given import FromFile, Natural, given, write_partition

PARTITIONS: dict[str, type] = {
    "iid": IID,
    "shards": Shards,
    "labels": Labels,
    "dirichlet": Dirichlet,
    "dirichlet_labels": DirichletLabels,
    "quantity": Quantity,
    "similarity": Similarity,
    "overlapping": Overlapping,
    "natural": Natural,
    "file": FromFile,
}

__all__ = [
    "IID",
    "PARTITIONS",
    "Dirichlet",
    "DirichletLabels",
    "Excerpt",
    "FromFile",
    "Ints",
    "Labels",
    "Natural",
    "Overlapping",
    "Partition",
    "Partitioner",
    "Quantity",
    "Shards",
    "Similarity",
    "given",
    "write_partition",
]
