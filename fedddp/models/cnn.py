"""McMahan's convolutional network."""

from dataclasses import dataclass

from torch import nn

from .base import ModelFactory


@dataclass(frozen=True)
class CNN(ModelFactory):
    """Two 5x5 convolutions (32 and 64 channels, 'same' padding) with 2x2 max-pooling, 512 hidden units.

    1,663,370 parameters on 28x28 grey images with 10 classes (McMahan et al. 2017, section 3).
    """

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        channels, height, width = shape
        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
