"""Datasets as users have them, for tests of what is read and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from fedddp.config import UsageError

N = 12
X = np.arange(N * 4, dtype=np.float32).reshape(N, 4)
Y = np.arange(N) % 3
PAIR = (X, Y)


def refused(key, code, attempt, *args, **more):
    """The UsageError by which ``attempt`` is refused, in one line."""
    with pytest.raises(UsageError) as error:
        attempt(*args, **more)
    assert (error.value.key, error.value.code) == (key, code)
    assert "\n" not in str(error.value)
    return error.value


class Items:
    """A map-style dataset: ``item(i)``."""

    def __init__(self, item, length=N):
        self.item, self.length = item, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.item(i)


def mnist(root: Path, train=(20, 20), test=(10, 10), name="MNIST"):
    """Files in MNIST's format with so many images and labels."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        size = np.array([images, 28, 28], dtype=">i4").tobytes()
        pixels = (np.arange(images * 784) % 251).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + size + pixels)
        numbers = (np.arange(labels) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([labels], dtype=">i4").tobytes() + numbers
        )
    return raw
