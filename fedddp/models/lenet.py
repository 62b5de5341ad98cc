"""The small convolutional network of LeNet's proportions."""

from dataclasses import dataclass

from torch import nn

from .base import ModelFactory


@dataclass(frozen=True)
class LeNet(ModelFactory):
    """Two 5x5 convolutions (6 and 16 channels, no padding) with 2x2 max-pooling, then 120 and 84 hidden units.

    44,426 parameters on 28x28 grey images with 10 classes, 62,006 on 32x32 colour ones. LeNet-5's sizes (LeCun et al.
    1998) with ReLU and max-pooling: the "simple CNN" of NIID-Bench (Li et al. 2022).
    """

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        channels, height, width = shape
        if min(height, width) < 16:
            raise ValueError(f"model.name=lenet needs images of 16x16 pixels or more, these are {height}x{width}")
        after = [(side - 4) // 2 for side in shape[1:]]
        after = [(side - 4) // 2 for side in after]
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * after[0] * after[1], 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )
