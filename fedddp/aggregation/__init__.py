"""Aggregation: from the clients' updates to one weighted mean, by one all_reduce."""

from .limit import NormLimit
from .pipeline import Inbox, Pipeline, checksum
from .reduce import ExactSum, FastSum, Reduce
from .ring import RingSum, in_the_clear
from .rules import AGGREGATION_RULES, Rule
from .shards import CoordinateShards
from .tally import ClientTally, CountTally, DriftTally, SilentTally, SumTally, Tally

__all__ = [
    "AGGREGATION_RULES",
    "ClientTally",
    "CoordinateShards",
    "CountTally",
    "DriftTally",
    "ExactSum",
    "FastSum",
    "Inbox",
    "NormLimit",
    "Pipeline",
    "Reduce",
    "RingSum",
    "Rule",
    "SilentTally",
    "SumTally",
    "Tally",
    "checksum",
    "in_the_clear",
]
