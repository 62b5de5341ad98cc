"""Small models of token sequences, and clients of very different sizes who own such sequences."""

import torch
import torch.nn.functional as F
from torch import nn

from fedddp.data import Dataset, Examples

from .zoo import CLASSES, TOTAL, clients

VOCABULARY, LENGTH = 11, 6


class Reader(nn.Module):
    """Embedding, recurrent layers and a head on the last output; the final states join in if ``states``."""

    def __init__(self, kind=nn.LSTM, *, states=False, **how):
        super().__init__()
        self.embedding, self.states, self.kind = nn.Embedding(VOCABULARY, 4, padding_idx=0), states, kind
        self.recurrent = kind(4, 6, **{"num_layers": 2, "batch_first": True} | how)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        self.recurrent.flatten_parameters()
        h = self.embedding(x)
        if not self.recurrent.batch_first:
            h = h.transpose(0, 1)
        first = h.new_full((self.recurrent.num_layers, len(x), self.recurrent.hidden_size), 0.1)
        lstm = self.kind is nn.LSTM
        y, last = self.recurrent(h, (first, first) if lstm else first) if self.states else self.recurrent(h)
        y = y[:, -1] if self.recurrent.batch_first else y[-1]
        return self.head(y + sum(s.sum(dim=0) for s in (last if lstm else [last])) if self.states else y)


class Attentive(nn.Module):
    """A block of a decoder: embeddings of tokens and positions, normalised attention and MLP, a head."""

    def __init__(self, norm=nn.LayerNorm, *, positions="of all", tied=False):
        super().__init__()
        self.tokens, self.positions, self.how = nn.Embedding(VOCABULARY, 8), nn.Embedding(LENGTH, 8), positions
        self.first, self.qkv, self.out = norm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.second, self.up, self.down = norm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, CLASSES)
        if tied:
            self.scores = nn.Linear(8, VOCABULARY, bias=False)
            self.scores.weight = self.tokens.weight
            self.head = nn.Linear(VOCABULARY, CLASSES)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        places = {"of all": places, "a row": places.unsqueeze(0), "of each": places.expand_as(x)}[self.how]
        h = self.tokens(x) + self.positions(places)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.first(h)).chunk(3, dim=-1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(a.transpose(1, 2).flatten(2))
        h = (h + self.down(F.gelu(self.up(self.second(h)))))[:, -1]
        return self.head(self.scores(h) if hasattr(self, "scores") else h)


def frozen_embedding():
    """Tokens keep what they mean: only the rest trains."""
    module = Reader()
    module.embedding.requires_grad_(False)
    module.embedding.weight.copy_(torch.linspace(-1, 1, 4 * VOCABULARY).view(-1, 4).sin())  # whatever the seed
    return module


MODELS = {
    "lstm": Reader,
    "lstm with states, time first": lambda: Reader(states=True, batch_first=False, num_layers=1),
    "gru": lambda: Reader(nn.GRU),
    "gru with states": lambda: Reader(nn.GRU, states=True, bias=False),
    "attention": Attentive,
    "rms norm": lambda: Attentive(nn.RMSNorm, positions="a row"),
    "positions of each": lambda: Attentive(positions="of each"),
    "frozen embedding": frozen_embedding,
}


def sequences(count=TOTAL, seed=0):
    """Random ids, the last of them padding, with labels."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randint(1, VOCABULARY, (count, LENGTH), generator=stream)
    lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=stream)
    return Examples(x * (torch.arange(LENGTH) < lengths), torch.randint(CLASSES, (count,), generator=stream))


def dataset():
    few = sequences(8)
    return Dataset(sequences(), Examples(few.x, few.y), CLASSES, mean=(0.0,), std=(1.0,))


def readers(dtype=torch.float64):
    """The clients, `zoo.SIZES` examples each."""
    return clients(sequences(), dtype)
