"""Local training behind one interface, and what clients remember."""

from .sequential import Correction, Local, SequentialTrainer
from .store import ClientStore

__all__ = ["ClientStore", "Correction", "Local", "SequentialTrainer"]
