"""Attacks: as evidence of what an update, a sum and a model give away, and by Byzantine clients on what is learned.

For judging one's own configuration on data that one owns; everything here is published, with its source in each file.
"""

from .adversary import Adversary
from .backdoor import Backdoor
from .byzantine import Attack, Gaussian, LabelFlip, NoAttack, SignFlip
from .omniscient import ALIE, IPM

ATTACKS: dict[str, type] = {
    "none": NoAttack,
    "label_flip": LabelFlip,
    "sign_flip": SignFlip,
    "gaussian": Gaussian,
    "alie": ALIE,
    "ipm": IPM,
    "backdoor": Backdoor,
}

__all__ = [
    "ALIE",
    "ATTACKS",
    "IPM",
    "Adversary",
    "Attack",
    "Backdoor",
    "Gaussian",
    "LabelFlip",
    "NoAttack",
    "SignFlip",
]
