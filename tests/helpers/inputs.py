"""Datasets whose inputs are not ten classes of pictures, small enough to train on in a blink."""

from dataclasses import dataclass
from typing import Any

import torch

from fedddp.data import Dataset

MLP = {"name": "mlp", "hidden": 4}
VOCABULARY = 20  # as many as the models of tests/plugins/fitting.py have


@dataclass(frozen=True)
class Kind:
    """What one example is, and a model for it, as a section of the configuration."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    model: Any = None

    @property
    def sections(self):
        return {"model": self.model or MLP}

    def dataset(self, classes=3, num_train=24, num_test=9):
        """A random pattern for each class, with noise that makes some mistakes certain."""
        stream = torch.Generator().manual_seed(0)
        patterns = torch.rand(classes, *self.shape, generator=stream)

        def draw(n):
            y = torch.arange(n) % classes
            x = (patterns[y] + torch.rand(n, *self.shape, generator=stream)) / 2  # in [0, 1)
            most = {torch.uint8: 256, torch.int64: VOCABULARY}.get(self.dtype, 1)
            return (x * most).to(self.dtype), y.flip(0)

        return Dataset.of(draw(num_train), draw(num_test))


KINDS = {
    "vector": Kind((5,)),
    "sequence": Kind((7, 3)),
    "tokens": Kind((6,), torch.int64, {"name": "fitting:Bag"}),
    "2 channels": Kind((2, 6, 6)),
    "4 channels": Kind((4, 6, 6)),
    "volume": Kind((2, 3, 4, 5)),
    "one number": Kind((1,)),
    "one pixel": Kind((1, 1, 1)),
    "a row of pixels": Kind((3, 1, 9)),
    "a sequence of one": Kind((1, 4)),
    "a film": Kind((3, 2, 2, 2, 2)),
    "one token": Kind((1,), torch.int64, {"name": "fitting:Bag"}),
    "tokens in order": Kind((6,), torch.int64, {"name": "fitting:CharLSTM"}),
    "a vector of bytes": Kind((5,), torch.uint8),
    "2 channels of bytes": Kind((2, 4, 4), torch.uint8),
    "grey pictures without channels": Kind((7, 3), torch.uint8),
    "a volume of bytes": Kind((2, 3, 4, 5), torch.uint8),
    "double precision": Kind((7, 3), torch.float64),
}
