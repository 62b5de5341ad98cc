"""Local training behind one interface, and what clients remember."""

from .choose import choose
from .local import Correction, Local, LocalTrainingSpec, Trainer
from .private import CanaryTrainer, PrivateTrainer, choose_private, mixing_layers, private_steps, sampling_rate
from .sequential import SequentialTrainer, compared_layer
from .store import ClientStore
from .vectorized import VectorizedTrainer

__all__ = [
    "CanaryTrainer",
    "ClientStore",
    "Correction",
    "Local",
    "LocalTrainingSpec",
    "PrivateTrainer",
    "SequentialTrainer",
    "Trainer",
    "VectorizedTrainer",
    "choose",
    "choose_private",
    "compared_layer",
    "mixing_layers",
    "private_steps",
    "sampling_rate",
]
