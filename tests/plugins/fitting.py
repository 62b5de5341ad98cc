"""Datasets and models that fit together, or do not, named by import path in tests."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


class Tokens:
    """Token ids [n, 6] of a vocabulary of 20."""

    kind = "int64"

    def __init__(self, root, train, download):
        rng = np.random.default_rng(train)
        self.data = rng.integers(0, 20, (60 if train else 20, 6))
        self.targets = self.data.sum(axis=1) % 3
        self.data = self.data.astype(self.kind)


class Tokens32(Tokens):
    kind = "int32"


class ByteTokens(Tokens):
    kind = "uint8"


class FloatTokens(Tokens):
    kind = "float32"


class Bits:
    """Features [n, 6], each true or false."""

    def __init__(self, root, train, download):
        rng = np.random.default_rng(train)
        self.data = rng.integers(0, 2, (60 if train else 20, 6)).astype(bool)
        self.targets = self.data.sum(axis=1) % 3


class RareToken(Tokens):
    """One test example has an id that no training example has."""

    def __init__(self, root, train, download):
        super().__init__(root, train, download)
        self.data[7, 3] = 19 if train else 20


class Vectors:
    """Measurements [n, 6]."""

    def __init__(self, root, train, download):
        rng = np.random.default_rng(train)
        self.targets = rng.integers(3, size=60 if train else 20)
        self.data = (rng.standard_normal((len(self.targets), 6)) + 2 * self.targets[:, None]).astype("float32")


class OneMore(Vectors):
    """201 test examples."""

    def __init__(self, root, train, download):
        super().__init__(root, train, download)
        self.data, self.targets = (np.resize(part, (201, *part.shape[1:])) for part in (self.data, self.targets))


class Longer(Vectors):
    """Test examples of another length."""

    def __init__(self, root, train, download):
        super().__init__(root, train, download)
        self.data = self.data if train else np.pad(self.data, ((0, 0), (0, 1)))


class CharLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0][:, -1])


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embed(x).mean(dim=1))


class Lazy(nn.Sequential):
    """Layers that learn their sizes from the first batch."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


class Complex(nn.Module):
    def __init__(self, dtype="complex64"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=getattr(torch, dtype)))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


class ComplexBuffer(nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("phases", 1j * torch.arange(6), persistent=persistent)

    def forward(self, x):
        return self.head((x * self.phases.exp()).real)


class Drawn(nn.Linear):
    """Initial weights from the generator that ``how`` names."""

    def __init__(self, how="numpy"):
        super().__init__(6, 3)
        draw = {
            "numpy": np.random.standard_normal,
            "random": lambda shape: np.array([random.gauss(0, 1) for _ in range(shape[0] * shape[1])]).reshape(shape),
            "torch": lambda shape: torch.randn(shape).numpy(),
            "unseeded": lambda shape: np.random.default_rng().standard_normal(shape),
        }[how]
        self.weight.data = torch.tensor(0.1 * draw((3, 6)), dtype=torch.float32)


class Dropped(nn.Sequential):
    def __init__(self, part="Dropout"):
        super().__init__(nn.Linear(6, 8), getattr(nn, part)(0.5), nn.ReLU(), nn.Linear(8, 3))


class EvaluationOnly(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        if self.training:
            raise NotImplementedError("not for training")
        return super().forward(x)


class TenAtATime(nn.Linear):
    """Written for batches of ten."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        return super().forward(x.view(10, 6) if self.training else x)


class NoLinear(nn.Module):
    """A classifier without a linear layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 3))

    def forward(self, x):
        return x @ self.weight


class Squeezing(nn.Linear):
    """Gives one example's scores without a batch."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        return super().forward(x).squeeze()


class NotFour(nn.Linear):
    """Does not train on four examples."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        if self.training and len(x) == 4:
            raise ValueError("not four")
        return super().forward(x)
