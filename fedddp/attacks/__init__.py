"""Attacks by Byzantine clients on training, to test a configuration against; all of them are published."""

from .adversary import Adversary
from .byzantine import ALIE, IPM, Attack, Backdoor, Gaussian, LabelFlip, NoAttack, SignFlip

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
