"""Local training behind one interface, and what clients remember."""

from .choose import choose
from .local import Correction, Local, Trainer
from .sequential import SequentialTrainer
from .store import ClientStore
from .vectorized import VectorizedTrainer

__all__ = ["ClientStore", "Correction", "Local", "SequentialTrainer", "Trainer", "VectorizedTrainer", "choose"]
