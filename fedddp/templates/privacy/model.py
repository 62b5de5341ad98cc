"""The model. A small one: noise is added to every parameter."""

from torch import nn


class Net(nn.Sequential):
    """A network with one hidden layer: images [B, 1, 28, 28] to scores [B, 10]."""

    def __init__(self, width: int = 32):
        super().__init__(nn.Flatten(), nn.Linear(28 * 28, width), nn.Tanh(), nn.Linear(width, 10))
