"""The benchmark's models in plain torch, the same for every contender."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Sequential:
    """McMahan et al.'s 2NN: 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def cnn() -> nn.Sequential:
    """McMahan et al.'s CNN: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def logistic() -> nn.Sequential:
    """Multinomial logistic regression: 7,850 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


VOCABULARY, LENGTH = 97, 80  # of the embedded text


class Hidden(nn.LSTM):
    """An LSTM's outputs alone."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x)[0]


def lstm() -> nn.Sequential:
    """LEAF's character model: 824,425 parameters."""
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), Hidden(8, 256, 2, batch_first=True), nn.Linear(256, VOCABULARY))


class Embedded(nn.Module):
    """Tokens and positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))


class Block(nn.Module):
    """Causal attention and an MLP, each after a LayerNorm and added to what went in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


def gpt() -> nn.Sequential:
    """A decoder of 2 blocks, width 64: 117,632 parameters."""
    blocks = [Block(64, 4) for _ in range(2)]
    return nn.Sequential(Embedded(64), *blocks, nn.LayerNorm(64), nn.Linear(64, VOCABULARY, bias=False))


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over examples, or over all positions of all examples."""
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


MODELS = {"mlp": mlp, "cnn": cnn, "logistic": logistic, "lstm": lstm, "gpt": gpt}
