"""The benchmark's models in plain torch, the same for every contender."""

from __future__ import annotations

from torch import nn


def mlp() -> nn.Sequential:
    """McMahan et al.'s 2NN: 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def cnn() -> nn.Sequential:
    """McMahan et al.'s CNN: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def logistic() -> nn.Sequential:
    """Multinomial logistic regression: 7,850 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


MODELS = {"mlp": mlp, "cnn": cnn, "logistic": logistic}
