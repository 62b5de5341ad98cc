"""Folded layers that keep what they would learn from, as pieces of the gradients of single examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..folded.convolution import FoldedConv2d
from ..folded.embedding import FoldedEmbedding
from ..folded.layer import EVERY, FoldedLayer, FoldedLinear
from ..folded.norm import FoldedGroupNorm, FoldedLayerNorm, FoldedNorm, FoldedRMSNorm
from ..folded.recurrent import FoldedGRU, FoldedLSTM, FoldedRecurrent
from .captured import Captured, Each, LookUps, Rows


class Capturing(FoldedLayer):
    """Keeps the inputs and output gradients of a backward pass."""

    def __init__(self, name: str, plain: Any) -> None:
        super().__init__(name, plain)
        self.kept: Any = None

    def captured(self, examples: int) -> list[Captured]:
        """What was kept, of so many examples of each client; it is forgotten here."""
        kept, self.kept = self.kept, None
        return self.pieces(kept, examples)

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `captured`."""
        raise NotImplementedError

    def matrices(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The parameters that `Rows` come of, by their names in the model; see ``into`` there."""
        return {}

    def biased(self, weight: str, bias: str) -> tuple[str, str | None]:
        """The names in the model; None for a bias that there is not."""
        return self.name + weight, self.name + bias if bias in self.names else None


class CapturingLinear(Capturing, FoldedLinear):
    """Keeps ``x [K, B T, in]`` and ``dy [K, B T, out]``."""

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """See `FoldedLinear.learn_from`."""
        self.kept = x, dy

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `Capturing.captured`."""
        x, dy = (rows.unflatten(1, (examples, -1)) for rows in kept)
        return [Rows(x, dy, self.biased("weight", "bias"))]

    def matrices(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """See `Capturing.matrices`."""
        return {f"{self.name}weight": same}


class CapturingConv2d(Capturing, FoldedConv2d):
    """The same; its rows are patches in the order (kh, kw, C)."""

    def learn_from(self, x: Tensor | None, patches: Tensor | None, dy: Tensor, back: bool) -> Tensor | None:
        """See `FoldedConv2d.learn_from`."""
        if patches is None:
            assert x is not None
            patches = self.patches(x)[0]
        self.kept = patches, self.rows(dy)
        return self.gradients(x, dy, (True, False))[0] if x is not None and back else None

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `Capturing.captured`."""
        x, dy = (rows.unflatten(1, (examples, -1)) for rows in kept)
        return [Rows(x, dy, self.biased("weight", "bias"), by_patch)]

    def matrices(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """See `Capturing.matrices`."""
        return {f"{self.name}weight": by_patch}


class CapturingEmbedding(Capturing, FoldedEmbedding):
    """Keeps ids [K B, ...] and ``dy [K B, ..., E]``; that of padding is 0."""

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """See `FoldedEmbedding.learn_from`."""
        self.kept = x, self.without_padding(x, dy)

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `Capturing.captured`."""
        x, dy = kept
        ids = x.reshape(self.num_clients, examples, -1)
        return [LookUps(ids, dy.reshape(*ids.shape, -1), f"{self.name}weight")]


class CapturingNorm(Capturing, FoldedNorm):
    """Keeps normalised inputs and output gradients."""

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """See `FoldedNorm.learn_from`."""
        self.kept = x, dy

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `Capturing.captured`."""
        x, dy = kept
        return [Each(self.summed(own, x, dy, examples), self.name + own) for own in self.names]


class CapturingLayerNorm(CapturingNorm, FoldedLayerNorm):
    """See `CapturingNorm`."""


class CapturingRMSNorm(CapturingNorm, FoldedRMSNorm):
    """See `CapturingNorm`."""


class CapturingGroupNorm(CapturingNorm, FoldedGroupNorm):
    """See `CapturingNorm`."""


class CapturingRecurrent(Capturing, FoldedRecurrent):
    """Keeps the rows that each matrix acts on, all steps of all examples; by steps, since the library shows no rows."""

    by_library = False

    def learn(self, own: str, gradient: Tensor, clients: slice | int = EVERY) -> None:
        """Of biases, which follow from the rows."""

    def learn_product(self, own: str, dy: Tensor, x: Tensor, clients: slice = EVERY) -> None:
        """See `FoldedLayer.learn_product`; ``dy`` and ``x`` are [k, T B, ...]."""
        self.kept = self.kept or {}
        self.kept.setdefault(own, []).append((x, dy))

    def pieces(self, kept: Any, examples: int) -> list[Captured]:
        """See `Capturing.captured`."""
        found: list[Captured] = []
        for own, groups in kept.items():
            x, dy = (torch.cat(rows).unflatten(1, (-1, examples)).transpose(1, 2) for rows in zip(*groups, strict=True))
            found.append(Rows(x, dy, self.biased(own, own.replace("weight", "bias"))))
        return found

    def matrices(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """See `Capturing.matrices`."""
        return {self.name + own: same for own in self.names if own.startswith("weight")}


class CapturingLSTM(CapturingRecurrent, FoldedLSTM):
    """See `CapturingRecurrent`."""


class CapturingGRU(CapturingRecurrent, FoldedGRU):
    """See `CapturingRecurrent`."""


def same(weight: Tensor) -> Tensor:
    """A matrix as it is, [K, o, i]."""
    return weight


def by_patch(weight: Tensor) -> Tensor:
    """A convolution's [K, O, C, kh, kw] as a view [K, O, kh, kw, C]."""
    return weight.permute(0, 1, 3, 4, 2)


CAPTURING: dict[type[nn.Module], type[Capturing]] = {
    nn.Linear: CapturingLinear,
    nn.Conv2d: CapturingConv2d,
    nn.Embedding: CapturingEmbedding,
    nn.LayerNorm: CapturingLayerNorm,
    nn.RMSNorm: CapturingRMSNorm,
    nn.GroupNorm: CapturingGroupNorm,
    nn.LSTM: CapturingLSTM,
    nn.GRU: CapturingGRU,
}
"""See `folded.model.KINDS`."""
