"""A small convolutional pair for a conditional GAN."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .base import ModelFactory


class Generator(nn.Module):
    """Noise, with the class's one-hot vector beside it, to pixels in [0, 1]: each layer doubles height and width.

    Batch normalisation as in DCGAN (Radford et al. 2016, section 3); its statistics are averaged like the weights.
    """

    def __init__(self, latent: int, channels: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        colours, height, width = shape
        wide = 2 * channels
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(latent + num_classes, wide * (height // 4) * (width // 4)),
            nn.Unflatten(1, (wide, height // 4, width // 4)),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([z, F.one_hot(y, self.num_classes).to(z.dtype)], dim=1))


class Discriminator(nn.Module):
    """The logit of "real": f(x) . (u + v_y), a projection on the class (Miyato & Koyama 2018, equation 3)."""

    def __init__(self, channels: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        colours, height, width = shape
        self.layers = nn.Sequential(
            nn.Conv2d(colours, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        features = 2 * channels * (height // 4) * (width // 4)
        self.any = nn.Linear(features, 1)  # u
        self.each = nn.Linear(features, num_classes, bias=False)  # v_1 ... v_C

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.layers(x)
        return (self.any(features) + self.each(features).gather(1, y.unsqueeze(1))).squeeze(1)


class Pair(nn.Module):
    """What ``task.name=conditional_gan`` asks of a model: two networks and how many numbers of noise one takes."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent: int) -> None:
        super().__init__()
        self.generator, self.discriminator, self.latent = generator, discriminator, latent

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("these are two networks and no classifier; set task.name=conditional_gan")


@dataclass(frozen=True)
class GAN(ModelFactory):
    """Two layers of 4x4 convolutions each, for ``task.name=conditional_gan``; 101,730 parameters on 28x28 grey."""

    latent: Annotated[int, Field(ge=1, le=10_000, description="numbers of noise a drawing is made from")] = 32
    channels: Annotated[
        int, Field(ge=1, le=1024, description="of the outer convolutions; the inner have twice that")
    ] = 16

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        if len(shape) != 3:
            raise ValueError(f"it draws images, and inputs here have shape {list(shape)}; use data of [C, H, W]")
        if shape[1] % 4 or shape[2] % 4:
            raise ValueError("height and width have to be multiples of 4: they are halved twice")
        generator = Generator(self.latent, self.channels, shape, num_classes)
        return Pair(generator, Discriminator(self.channels, shape, num_classes), self.latent)
