"""VGG for small images."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from .base import ModelFactory
from .norms import NORMS, OptionalNorm, Width, initialise_, scaled

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage (Simonyan & Zisserman 2015, table 1: A, B, D, E)."""
CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class VGG(ModelFactory):
    """Five stages of 3x3 convolutions, each ended by 2x2 max-pooling, two hidden layers (Simonyan & Zisserman 2015).

    Made for small images: pooling rounds up, so that 28x28 and 32x32 both end at one position (larger images are
    averaged to one), and the hidden layers have 512 units instead of 4,096. VGG-11 has 9,750,922 parameters on 32x32
    colour images with 10 classes, as in FedNova (Wang et al. 2020). No dropout: clients can be trained at once.
    """

    depth: Annotated[Literal[11, 13, 16, 19], Field(description="layers with weights")] = 11
    width: Width = 1.0
    norm: OptionalNorm = "none"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        before = shape[0]
        for channels, convolutions in zip(CHANNELS, STAGES[self.depth], strict=True):
            for _ in range(convolutions):
                after = scaled(channels, self.width)
                layers += [nn.Conv2d(before, after, 3, padding=1), NORMS[self.norm](after), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            layers += [nn.Linear(before, before), nn.ReLU()]
        layers.append(nn.Linear(before, num_classes))
        return initialise_(nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity))))
