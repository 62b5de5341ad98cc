"""Aggregation: the clients' updates become one weighted mean, by one all_reduce."""

from .pipeline import Inbox, Pipeline, Stage, checksum
from .reduce import ExactSum, FastSum, Reduce
from .ring import RingSum, in_the_clear
from .tally import ClientTally, CountTally, SilentTally, SumTally, Tally

__all__ = [
    "ClientTally",
    "CountTally",
    "ExactSum",
    "FastSum",
    "Inbox",
    "Pipeline",
    "Reduce",
    "RingSum",
    "SilentTally",
    "Stage",
    "SumTally",
    "Tally",
    "checksum",
    "in_the_clear",
]
