"""Example-level differential privacy on the client: DP-SGD (Abadi et al. 2016)."""

from .choose import choose_private
from .oracle import refuse_mixing
from .trainer import PrivateTrainer, private_steps, sampling_rate

__all__ = ["PrivateTrainer", "choose_private", "private_steps", "refuse_mixing", "sampling_rate"]
