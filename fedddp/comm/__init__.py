"""Communication between ranks: collectives, heartbeats, the ledger of what is sent, the guard of what may be sent."""

from .collectives import Comm, record
from .guard import MessageRefused
from .heartbeat import CommError, LostRank
from .ledger import Purpose
from .world import Place

__all__ = ["Comm", "CommError", "LostRank", "MessageRefused", "Place", "Purpose", "record"]
