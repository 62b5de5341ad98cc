"""Normalisation layers by name, and the initial weights of ReLU networks."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

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
