"""Derived randomness: every stream is a function of (seed, purpose, path), so nothing has to be stored or sent.

A stream for client k in round t does not depend on which rank hosts k, on how many ranks there are, or on what was
drawn before; a resumed run draws what the uninterrupted one would have drawn. Not for secrets: these are simulation
generators, and torch's CPU generator keeps only 32 bits of a seed.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, *path: int) -> int:
    """63 bits that depend on every argument (SHA-256 of their text)."""
    text = "/".join([str(seed), purpose, *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *path: int) -> torch.Generator:
    """A CPU generator, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(derive(seed, purpose, *path))


def numpy_generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """The same for draws over a whole population, where numpy is faster and needs no tensor."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *path)))


@contextmanager
def global_seed(seed: int, purpose: str, *path: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and `random` inside the block and restore them after it.

    Model initialisation, dropout and what a user's module draws use these. On a GPU, the current device's is included.
    """
    value = derive(seed, purpose, *path)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    of_numpy, of_python = np.random.get_state(legacy=False), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(value)  # torch.manual_seed is 0.3 ms without a GPU: it records a trace
            if devices:
                torch.cuda.manual_seed(value)
            np.random.seed(value % 2**32)
            random.seed(value)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
