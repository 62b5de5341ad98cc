"""Datasets whose inputs are not ten classes of pictures, small enough to train on in a blink."""

import torch

from fedddp.data import Dataset

SHAPES = {
    "vector": (5,),
    "sequence": (7, 3),
    "2 channels": (2, 6, 6),
    "4 channels": (4, 6, 6),
    "volume": (2, 3, 4, 5),
}
OTHERS = {
    "one number": (1,),
    "one pixel": (1, 1, 1),
    "a row of pixels": (3, 1, 9),
    "a sequence of one": (1, 4),
    "a film": (3, 2, 2, 2, 2),
}


def dataset(shape, classes=3, num_train=24, num_test=9, dtype=torch.float32):
    """A random pattern for each class, with noise that makes some mistakes certain; bytes are scaled to 0 to 255."""
    stream = torch.Generator().manual_seed(0)
    patterns = torch.rand(classes, *shape, generator=stream)

    def draw(n):
        y = torch.arange(n) % classes
        x = patterns[y] + torch.rand(n, *shape, generator=stream)
        return (127 * x if dtype == torch.uint8 else x).to(dtype), y.flip(0)

    return Dataset.of(draw(num_train), draw(num_test))
