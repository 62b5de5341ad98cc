"""Example-level differential privacy on the client: DP-SGD (Abadi et al. 2016)."""

from .canaries import CanaryTrainer
from .choose import choose_private
from .oracle import mixing_layers
from .trainer import PrivateTrainer, private_steps, sampling_rate

__all__ = ["CanaryTrainer", "PrivateTrainer", "choose_private", "mixing_layers", "private_steps", "sampling_rate"]
