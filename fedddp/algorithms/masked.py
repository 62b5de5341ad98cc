"""Local training of a part of the model: what is private stays with its client, what is frozen stays as it was.

Letters besides those of `types`: q entries of w are private, S are shared (neither private nor frozen).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer, OptimizerAround, OptimizerState
from ..types import Contrast, LocalResult
from .base import LocalTraining, TrainingAround, unchanged


@dataclass(frozen=True, eq=False)
class Masks:
    """Which entries of a model are private and which are frozen; the others are shared.

    Vectors as long as the model, or as its trainable part, are without the entries that are not shared where they are
    sent: of length D (or P) become vectors of length S. All others pass as they are.
    """

    private: Tensor  # bool [D]
    frozen: Tensor  # bool [D]
    num_trainable: int

    @cached_property
    def shared(self) -> Tensor:
        return ~(self.private | self.frozen)

    @cached_property
    def lengths(self) -> dict[int, int]:
        """The length of each kind of vector to what is left of it where it is sent."""
        p, shared = self.num_trainable, self.shared
        return {p: int(shared[:p].sum()), len(shared): int(shared.sum())}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        """Return the layout of the tensors of ``spec`` that are shared (a mask is of whole tensors)."""
        shared = [bool(view.all()) for view in spec.views(self.shared).values()]
        return spec.part(shared, self.lengths[spec.num_trainable])

    def with_own(self, w: Tensor, own: Tensor) -> Tensor:
        """Return ``w`` ([D] or [K, D]) with the private entries ``own [K, q]`` in their places, [K, D]."""
        if not self.private.any():
            return w
        w = w.expand(len(own), -1).clone()
        w[:, self.private.to(w.device)] = own
        return w

    def shortened(self, rows: Tensor) -> Tensor:
        """Return the shared entries of ``rows [K, d]``."""
        length = rows.shape[1]
        return rows[:, self.shared[:length].to(rows.device)] if length in self.lengths else rows

    def restored(self, vector: Tensor, length: int) -> Tensor:
        """Return a vector that was `shortened`, with zeros for what is not shared, [length]."""
        if length not in self.lengths:
            return vector
        full = vector.new_zeros(length)
        full[self.shared[:length].to(vector.device)] = vector
        return full

    def still(self, rows: Tensor, before: Tensor) -> Tensor:
        """Return ``rows [K, d]`` with the entries of ``before`` wherever nothing is shared."""
        length = rows.shape[1]
        return torch.where(self.shared[:length].to(rows.device), rows, before) if length in self.lengths else rows


class OnOwnPart(TrainingAround):
    """K clients' training as an algorithm sees it that deals in the shared entries alone.

    The algorithm deals in vectors of full length. On a client they begin from its own private entries, wherever the
    algorithm lets training begin, and every training moves these on; the algorithm sees no movement there (delta is 0),
    nor anywhere frozen. Its corrections do not touch them.

    Args:
        masks: what is private and what is frozen.
        local: the training of the clients.
        own: their private entries, [K, q]; what they become is in `own`.
        head_epochs: train the private entries alone for so long first, then the shared ones alone (FedRep).
    """

    def __init__(self, masks: Masks, local: LocalTraining, own: Tensor, head_epochs: int) -> None:
        super().__init__(local)
        self._masks, self.own, self._head_epochs = masks, own, head_epochs
        p = masks.num_trainable
        self._private, self._shared = masks.private[:p].to(own.device), masks.shared[:p].to(own.device)

    def loss(self, w: Tensor) -> Tensor:
        return self._local.loss(self._masks.with_own(w, self.own))

    def gradient(self, w: Tensor) -> Tensor:
        g = self._local.gradient(self._masks.with_own(w, self.own))
        return g.masked_fill(~self._masks.shared.to(g.device), 0.0)

    def train(
        self,
        start: Tensor,
        correct=None,
        *,
        epochs: int | None = None,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
    ) -> LocalResult:
        """Train from ``start`` with the clients' own entries in it, as in all models that it is compared with.

        An ``optimizer`` of the algorithm's own moves shared entries only.
        """
        if contrast is not None:
            models = [self._masks.with_own(w, self.own) for w in contrast.models]
            contrast = replace(contrast, models=torch.stack(models))
        if self._head_epochs:
            self._train_head(start)
        free = self._shared if self._head_epochs else self._shared | self._private
        mine: Optimizer = self._local.optimizer
        if optimizer is not None or not free.all():
            correct = correct or unchanged  # flat vectors, for what follows
            held = Held(mine, ~free | self._shared if optimizer else ~free)
            mine = Aside(optimizer, self._shared, held) if optimizer else held
        begin = self._masks.with_own(start, self.own)
        result = self._local.train(begin, self._on_shared(correct), epochs=epochs, optimizer=mine, contrast=contrast)
        if not self._head_epochs:
            self._keep(begin, result)
        delta = result.delta.masked_fill(~self._masks.shared.to(result.delta.device), 0.0)
        return replace(result, start=start, delta=delta)

    def _train_head(self, start: Tensor) -> None:
        begin = self._masks.with_own(start, self.own)
        alone = Held(self._local.optimizer, ~self._private)
        self._keep(begin, self._local.train(begin, unchanged, epochs=self._head_epochs, optimizer=alone))

    def _keep(self, begin: Tensor, result: LocalResult) -> None:
        if self.own.shape[1]:
            private = self._masks.private.to(begin.device)
            self.own = begin[:, private] + result.delta[:, private]

    def _on_shared(self, correct: Any) -> Any:
        if correct is None or not self._private.any():
            return correct
        return lambda g, w: torch.where(self._private, g, correct(g, w))


class Held(OptimizerAround):
    """``inner`` on what is left of each flat vector without the entries ``hold`` (bool [P]), which it never sees.

    A zero gradient would not do: weight decay moves an entry that has none, and momentum one that had one before.
    """

    def __init__(self, inner: Optimizer, hold: Tensor) -> None:
        super().__init__(inner)
        self._free = (~hold).nonzero().flatten()

    def init(self, params: list[Tensor]) -> OptimizerState:
        return self._inner.init(self._part(params))

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        moved = self._part(params)
        self._inner.step_(moved, self._part(grads), state)
        for p, part in zip(params, moved, strict=True):
            p.index_copy_(0, self._free, part)

    def _part(self, vectors: list[Tensor]) -> list[Tensor]:
        return [v.index_select(0, self._free) for v in vectors]


class Aside(OptimizerAround):
    """``inner``, which may have whole vectors of its own, on the entries ``shared`` (bool [P]); ``rest`` on its own."""

    def __init__(self, inner: Optimizer, shared: Tensor, rest: Held) -> None:
        super().__init__(inner)
        self._rest, self._apart = rest, (~shared).nonzero().flatten()

    def init(self, params: list[Tensor]) -> OptimizerState:
        rest = {f"rest.{name}": vectors for name, vectors in self._rest.init(params).items()}
        return {**self._inner.init(params), **rest}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        before = [p.index_select(0, self._apart) for p in params]
        self._inner.step_(params, grads, state)
        for p, kept in zip(params, before, strict=True):
            p.index_copy_(0, self._apart, kept)
        rest = {name.removeprefix("rest."): v for name, v in state.items() if name.startswith("rest.")}
        self._rest.step_(params, grads, rest)
