"""Convolutional networks and their normalisation: McMahan's CNN, LeNet, VGG, ResNet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import ModelFactory

CHANNELS_A_GROUP = 16


def group_norm(channels: int) -> nn.Module:
    """Groups of 16 channels (Wu & He 2018), of somewhat more where 16 does not divide them.

    It looks at one example at a time: its result does not depend on what else a client owns, it keeps no statistics,
    and clients can be trained at once.
    """
    most = max(1, channels // CHANNELS_A_GROUP)
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "group": group_norm,
    "batch": nn.BatchNorm2d,
}

Norm = Annotated[
    Literal["group", "batch"],
    Field(description="group = GroupNorm; batch = BatchNorm, whose statistics are averaged like weights"),
]
OptionalNorm = Annotated[
    Literal["none", "group", "batch"],
    Field(description="none; group = GroupNorm; batch = BatchNorm, whose statistics are averaged like weights"),
]
Width = Annotated[
    float, Field(gt=0, le=4, description="factor of the channels of every layer; the published network is 1")
]


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, at least one."""
    return max(1, round(channels * width))


def initialise_(module: nn.Module) -> nn.Module:
    """Weights of variance 2 / fan-in and zero biases, which keep a ReLU network's activations alike in all layers.

    He et al. 2015, "Delving deep into rectifiers". The last linear layer keeps PyTorch's own weights: no ReLU follows.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


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


VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage (Simonyan & Zisserman 2015, table 1: A, B, D, E)."""
VGG_CHANNELS = (64, 128, 256, 512, 512)


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
        for channels, convolutions in zip(VGG_CHANNELS, VGG_STAGES[self.depth], strict=True):
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


SLIM, WIDE = (16, 32, 64), (64, 128, 256, 512)
RESNET_STAGES = {
    **{6 * n + 2: (SLIM, (n, n, n)) for n in (1, 2, 3, 5, 7, 9)},
    18: (WIDE, (2, 2, 2, 2)),
    34: (WIDE, (3, 4, 6, 3)),
}
"""Channels and blocks of each stage by depth: He et al. 2016, section 4.2 (6n + 2 layers) and table 1 (18 and 34)."""


class Block(nn.Module):
    """y = relu(x + f(x)), f of two 3x3 convolutions; x passes a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            NORMS[norm](after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            NORMS[norm](after),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False)).append(NORMS[norm](after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.convolutions(x))


@dataclass(frozen=True)
class ResNet(ModelFactory):
    """Basic residual blocks behind a 3x3 convolution, every stage but the first halving the image (He et al. 2016).

    Depths 8, 14, 20, 32, 44, 56 have three stages of 16, 32, 64 channels; 18 and 34 have four of 64 to 512. On 32x32
    colour images with 10 classes, 272,474 parameters at depth 20 and 11,173,962 at depth 18. GroupNorm stands where the
    paper has BatchNorm, whose batch statistics differ from client to client (Hsieh et al. 2020); the parameters are
    as many. Blocks do not begin as the identity, as in Goyal et al. 2017 for long training of deep networks: the few
    hundred steps that clients make between two averages take depth 8 to a loss of 0.3 without that, and of 1.4 with it.
    """

    depth: Annotated[Literal[8, 14, 18, 20, 32, 34, 44, 56], Field(description="layers with weights")] = 20
    width: Width = 1.0
    norm: Norm = "group"

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        channels, counts = RESNET_STAGES[self.depth]
        before = scaled(channels[0], self.width)
        blocks: list[Block] = []
        stem = [nn.Conv2d(shape[0], before, 3, 1, 1, bias=False), NORMS[self.norm](before), nn.ReLU()]
        for stage, (stage_channels, count) in enumerate(zip(channels, counts, strict=True)):
            for i in range(count):
                after = scaled(stage_channels, self.width)
                blocks.append(Block(before, after, 2 if stage and not i else 1, self.norm))
                before = after
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
        return initialise_(nn.Sequential(*stem, *blocks, *head))
