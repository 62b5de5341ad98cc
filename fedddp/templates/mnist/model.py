"""The model: any nn.Module. Keys of [model] in config.toml go to its constructor."""

from torch import nn


class Net(nn.Sequential):
    """A network with one hidden layer: images [B, 1, 28, 28] to scores [B, 10]."""

    def __init__(self, width: int = 64):
        super().__init__(nn.Flatten(), nn.Linear(28 * 28, width), nn.ReLU(), nn.Linear(width, 10))
