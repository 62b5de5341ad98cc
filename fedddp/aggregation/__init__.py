"""Aggregation: the clients' updates become one weighted mean, by one all_reduce."""

from .pipeline import Inbox, Pipeline, Stage, checksum
from .reduce import ExactSum, FastSum, Reduce

__all__ = ["ExactSum", "FastSum", "Inbox", "Pipeline", "Reduce", "Stage", "checksum"]
