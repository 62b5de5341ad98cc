"""Models of token sequences: LEAF's LSTM, a small GPT, and averaged embeddings.

Inputs are token ids [B, T] (int64), of which 0 is padding. A task that predicts every position gets scores [B, T, V];
any other gets [B, outputs], from the last position of each example that is no padding. Shapes: B examples, T positions,
V token ids, W features of a position.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..data.inputs import Shape
from ..errors import UsageError
from .base import ModelFactory

PADDING = 0

Width = Annotated[int, Field(ge=1, le=8192, description="features of each position")]


def vocabulary_of(shape: tuple[int, ...], name: str) -> int:
    """Return V for a model that reads sequences of tokens. Raises UsageError for inputs that are none."""
    vocabulary = shape.vocabulary if isinstance(shape, Shape) else 0
    if not vocabulary or len(shape) != 1:
        raise UsageError(
            f"model.name={name!r}: reads sequences of token ids, and inputs here are no such ids, of shape "
            f"{list(shape)}; use data of text or characters, or another model"
        )
    return vocabulary


def every_position(shape: tuple[int, ...]) -> bool:
    """Return whether the task predicts every position, and not one target an example."""
    return isinstance(shape, Shape) and shape.per_position


def at_last(hidden: Tensor, x: Tensor) -> Tensor:
    """Return the rows of ``hidden [B, T, W]`` at the last position of each example that is no padding, [B, W]."""
    last = (torch.arange(x.shape[1], device=x.device) * (x != PADDING)).amax(dim=1)  # 0 for nothing but padding
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


class Recurrent(nn.Module):
    """Embedding, LSTM layers and a linear head."""

    def __init__(self, vocabulary: int, outputs: int, per_position: bool, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        embedding, hidden, layers = sizes
        self.per_position = per_position
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(x))
        return self.head(hidden if self.per_position else at_last(hidden, x))


@dataclass(frozen=True)
class LSTM(ModelFactory):
    """Two LSTM layers of 256 units over embedded characters, the model of Shakespeare in LEAF (Caldas et al. 2018).

    Also the character model of McMahan et al. 2017, section 3. 819,920 parameters with 80 token ids and as many
    outputs: PyTorch's LSTM has two vectors of biases where TensorFlow's has one.
    """

    embedding: Annotated[int, Field(ge=1, le=8192, description="numbers that a token id is embedded in")] = 8
    hidden: Annotated[int, Field(ge=1, le=8192, description="units of each LSTM layer")] = 256
    layers: Annotated[int, Field(ge=1, le=16, description="LSTM layers")] = 2

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        sizes = self.embedding, self.hidden, self.layers
        return Recurrent(vocabulary_of(shape, "lstm"), num_classes, every_position(shape), sizes)


NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
STD = 0.02


class Block(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): pre-norm, causal attention, GELU units of four times the width."""

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = NORMS[norm](width), NORMS[norm](width)
        self.query_key_value, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.norm_attention(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        attended = F.scaled_dot_product_attention(*(t.transpose(-3, -2) for t in (q, k, v)), is_causal=True)
        hidden = hidden + self.attended(attended.transpose(-3, -2).flatten(-2))
        return hidden + self.down(F.gelu(self.up(self.norm_mlp(hidden))))


class Decoder(nn.Module):
    """Embeddings of tokens and positions, blocks, a last normalisation and a head (or the token embeddings again)."""

    def __init__(self, shape: tuple[int, ...], outputs: int, section: "GPT") -> None:
        super().__init__()
        vocabulary, width = vocabulary_of(shape, "gpt"), section.width
        self.per_position = every_position(shape)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(section.context or shape[0], width)
        self.blocks = nn.Sequential(*(Block(width, section.heads, section.norm) for _ in range(section.layers)))
        self.norm = NORMS[section.norm](width)
        self.head = None if section.tied else nn.Linear(width, outputs, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                residual = name.endswith(("attended.weight", "down.weight"))
                nn.init.normal_(parameter, std=STD / sqrt(2 * section.layers) if residual else STD)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).expand_as(x)  # a row an example: clients have their own
        hidden = self.tokens(x) + self.positions(positions)
        hidden = self.norm(self.blocks(hidden))
        hidden = hidden if self.per_position else at_last(hidden, x)
        return F.linear(hidden, self.tokens.weight) if self.head is None else self.head(hidden)


@dataclass(frozen=True)
class GPT(ModelFactory):
    """A decoder of causal self-attention with learned positions, in the form of GPT-2 (Radford et al. 2019).

    Weights are drawn from N(0, 0.02^2), those in front of a residual sum from N(0, 0.02^2 / (2 layers)): the sum of all
    blocks then has the variance of one. There is no dropout: clients can be trained at once. With 80 token ids, 80
    positions and the default keys, 824,064 parameters.
    """

    width: Width = 128
    layers: Annotated[int, Field(ge=1, le=96, description="blocks of attention and MLP")] = 4
    heads: Annotated[int, Field(ge=1, le=128, description="attention heads; they divide the width")] = 4
    context: Annotated[
        int, Field(ge=0, le=2**20, description="most positions of an input; 0 = as many as inputs have")
    ] = 0
    norm: Annotated[Literal["layer", "rms"], Field(description="layer = LayerNorm; rms = RMSNorm")] = "layer"
    tied: Annotated[bool, Field(description="score tokens by their embeddings, instead of a head of its own")] = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide model.width={self.width}; set another number of either")

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        vocabulary = vocabulary_of(shape, "gpt")
        if self.context and shape[0] > self.context:
            raise UsageError(
                f"model.context={self.context}: inputs are sequences of {shape[0]} tokens; set model.context=0 (as "
                "many as inputs have), or shorten the sequences (data.args)"
            )
        if self.tied and not (every_position(shape) and num_classes == vocabulary):
            raise UsageError(
                "model.tied=true: the model scores tokens, and this task predicts something else; set model.tied=false"
            )
        return Decoder(shape, num_classes, self)


class AveragedEmbedding(nn.Module):
    """A linear head on the mean of the embeddings of all tokens that are no padding; zeros if there are none."""

    def __init__(self, vocabulary: int, outputs: int, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        counts = (x != PADDING).unsqueeze(-1)  # [B, T, 1]
        total = (self.embedding(x) * counts).sum(dim=1)
        return self.head(total / counts.sum(dim=1).clamp(min=1))


@dataclass(frozen=True)
class TextMean(ModelFactory):
    """A linear layer on the mean of word embeddings, as fastText's classifier (Joulin et al. 2017)."""

    width: Width = 64

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        vocabulary = vocabulary_of(shape, "text_mean")
        if every_position(shape):
            raise UsageError(
                "model.name='text_mean': has one output an example, and this task predicts every position; use "
                "model.name=lstm or model.name=gpt"
            )
        return AveragedEmbedding(vocabulary, num_classes, self.width)
