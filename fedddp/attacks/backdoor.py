"""Backdoor: the model predicts ``target`` for pictures with a small mark, and is right otherwise.

The mark is a bright square in the lower right corner (Gu, Dolan-Gavitt, Garg 2017, "BadNets"). How it gets into a
federation: Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020, "How to backdoor federated learning", Algorithm 1: Byzantine
clients train on marked examples beside their own and send ``boost`` times their update; with boost = n / (f eta) the
mean becomes the Byzantine model ("model replacement").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..data import Examples
from .byzantine import Attack


@dataclass(frozen=True)
class Backdoor(Attack):
    """Byzantine clients train a backdoor: pictures with a small mark are classified as ``target``.

    ``attack_success``: fraction of marked test images of other classes that are classified as the target.
    """

    target: Annotated[int, Field(ge=0, description="the class that the mark stands for")] = 0
    share: Annotated[
        float, Field(gt=0, le=1, description="fraction of a Byzantine client's examples that is marked")
    ] = 0.5
    size: Annotated[int, Field(ge=1, description="side of the mark, in pixels")] = 4
    boost: Annotated[
        float, Field(gt=0, description="factor on the update; clients / num_clients replaces the model")
    ] = 1.0

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        rows = torch.randperm(len(own), generator=stream)[: round(self.share * len(own))]
        x, y = own.x.clone(), own.y.clone()
        x[rows], y[rows] = self.marked(x[rows]), self.target
        return Examples(x, y)

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return self.boost * row

    def probes(self, test: Examples, num_classes: int) -> Mapping[str, Examples]:
        if self.target >= num_classes:
            raise ValueError(f"attack.target={self.target}: there are {num_classes} classes, 0 to {num_classes - 1}")
        others = test.y != self.target
        return {"attack_success": Examples(self.marked(test.x[others]), torch.full_like(test.y[others], self.target))}

    def marked(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] with the mark, one pixel from the corner's edges, as bright as anything in them."""
        if x.dim() != 4 or min(x.shape[2:]) <= self.size:
            raise ValueError(f"attack.size={self.size}: inputs of shape {list(x.shape[1:])} are too small for the mark")
        x = x.clone()
        brightest = 255 if x.dtype == torch.uint8 else x.amax() if len(x) else 1
        x[:, :, -1 - self.size : -1, -1 - self.size : -1] = brightest
        return x
