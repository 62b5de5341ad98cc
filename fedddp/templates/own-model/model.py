"""A model that adapts to the data: a frozen dataclass whose fields are keys of [model], checked like any other."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn


class Block(nn.Module):
    """relu(x + f(x)), f two convolutions. GroupNorm needs no statistics that clients would have to average."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(2, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(2, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


@dataclass(frozen=True)
class Residual:
    """A strided convolution, residual blocks, and a linear layer on the means of the channels' quarters."""

    width: Annotated[int, Field(ge=2, multiple_of=2, description="channels")] = 8
    blocks: Annotated[int, Field(ge=0, description="residual blocks")] = 1

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """The module for images of ``shape`` (C, H, W)."""
        return nn.Sequential(
            nn.Conv2d(shape[0], self.width, 5, stride=3),
            nn.ReLU(),
            *(Block(self.width) for _ in range(self.blocks)),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * self.width, num_classes),
        )
