"""Communication between ranks: collectives, heartbeat messages, the ledger of messages, and the guard."""

from .collectives import Comm, record
from .guard import MessageRefused
from .heartbeat import CommError, LostRank
from .ledger import Purpose
from .world import Place

__all__ = ["Comm", "CommError", "LostRank", "MessageRefused", "Place", "Purpose", "record"]
