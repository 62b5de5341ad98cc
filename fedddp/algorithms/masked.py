"""Any algorithm on a part of the model: what is private stays with its client, what is frozen stays as it was.

Letters besides those of `types`: q entries of w are private, S are shared (neither private nor frozen).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer, OptimizerAround, OptimizerState
from ..types import ClientState, Cohort, Contrast, LocalResult, Mean, ServerState, Update
from .around import Around
from .base import LocalTraining

PRIVATE = "personal.private"
"""In a client's state: its private entries, [K, q]."""


@dataclass(frozen=True, eq=False)
class Masked(Around):
    """``inner`` on the shared entries of w; `Personal` is its configuration.

    ``inner`` deals in vectors of full length. On a client they begin from its own private entries, wherever ``inner``
    lets training begin, and every training moves these on; ``inner`` sees no movement there (delta is 0), nor anywhere
    frozen. Its corrections do not touch them. What is uploaded has no place for them: vectors of length D (or P)
    become vectors of length S, and the server puts zeros back.

    ``head_epochs``: first train the private entries alone for so long, then the shared ones alone (FedRep).
    """

    private: Tensor  # bool [D]
    frozen: Tensor  # bool [D]
    num_trainable: int
    head_epochs: int = 0

    @property
    def shared(self) -> Tensor:
        return ~(self.private | self.frozen)

    def vectors(self, dim: int) -> dict[str, int]:
        p, shared = self.num_trainable, self.shared
        shorter = {p: int(shared[:p].sum()), dim: int(shared.sum())}
        return {name: shorter.get(length, length) for name, length in self.inner.vectors(dim).items()}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        """How an uploaded vector is laid out: the tensors of ``spec`` that are shared (a mask is of whole tensors)."""
        shared = [bool(view.all()) for view in spec.views(self.shared).values()]
        pick = lambda of: tuple(one for one, kept in zip(of, shared, strict=True) if kept)  # noqa: E731
        return replace(
            spec,
            names=pick(spec.names),
            shapes=pick(spec.shapes),
            num_trainable=int(self.shared[: spec.num_trainable].sum()),
            dim=int(self.shared.sum()),
            kinds=pick(spec.kinds) if spec.kinds else (),
        )

    def init_client(self, w: Tensor) -> ClientState:
        own = {PRIVATE: w[self.private.to(w.device)].unsqueeze(0)} if self.private.any() else {}
        return {**self.inner.init_client(w), **own}

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        own, theirs = self._parted(client, server.w)
        training = _OnOwnPart(self, local, own)
        update, state, result = self.inner.client_update(server, theirs, training)
        vectors = {name: self._shortened(rows, len(server.w)) for name, rows in update.vectors.items()}
        state = {name: self._still(rows, theirs[name]) for name, rows in state.items()}
        return Update(vectors, update.weight), {**state, **training.state()}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        full = self.inner.vectors(len(server.w))
        vectors = {name: self._restored(vector, full[name]) for name, vector in mean.vectors.items()}
        after = self.inner.server_update(server, replace(mean, vectors=vectors), cohort)
        shared = self.shared.to(server.w.device)  # elsewhere a server optimizer's decay or momentum must not move w
        return replace(after, w=torch.where(shared, after.w, server.w))

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        own, theirs = self._parted(client, server.w)
        w = self.inner.personal_params(server, theirs)
        return self.with_own(w, own) if self.private.any() else w

    def with_own(self, w: Tensor, own: Tensor) -> Tensor:
        """``w`` ([D] or [K, D]) with the private entries ``own [K, q]`` in their places, [K, D]."""
        if not self.private.any():
            return w
        w = w.expand(len(own), -1).clone()
        w[:, self.private.to(w.device)] = own
        return w

    def _parted(self, client: ClientState, w: Tensor) -> tuple[Tensor, ClientState]:
        theirs = {name: rows for name, rows in client.items() if name != PRIVATE}
        return client.get(PRIVATE, w.new_empty(1, 0)), theirs

    def _shortened(self, rows: Tensor, dim: int) -> Tensor:
        length = rows.shape[1]
        return rows[:, self.shared[:length].to(rows.device)] if length in (dim, self.num_trainable) else rows

    def _still(self, rows: Tensor, before: Tensor) -> Tensor:
        """``rows``, of what ``inner`` remembers, with the entries ``before`` wherever nothing is shared."""
        length = rows.shape[1]
        mine = length in (len(self.private), self.num_trainable)
        return torch.where(self.shared[:length].to(rows.device), rows, before) if mine else rows

    def _restored(self, vector: Tensor, length: int) -> Tensor:
        if length not in (len(self.private), self.num_trainable):
            return vector
        full = vector.new_zeros(length)
        full[self.shared[:length].to(vector.device)] = vector
        return full


class _OnOwnPart:
    """K clients' training as ``inner`` sees it; ``own [K, q]`` follows what their private entries become."""

    def __init__(self, masked: Masked, local: LocalTraining, own: Tensor) -> None:
        self._masked, self._local, self._own = masked, local, own
        p = masked.num_trainable
        self._private, self._shared = masked.private[:p].to(own.device), masked.shared[:p].to(own.device)

    @property
    def ids(self) -> Sequence[int]:
        return self._local.ids

    @property
    def round(self) -> int:
        return self._local.round

    @property
    def num_examples(self) -> Tensor:
        return self._local.num_examples

    @property
    def mean_examples(self) -> float:
        return self._local.mean_examples

    @property
    def optimizer(self) -> Optimizer:
        return self._local.optimizer

    def state(self) -> ClientState:
        return {PRIVATE: self._own} if self._own.shape[1] else {}

    def loss(self, w: Tensor) -> Tensor:
        return self._local.loss(self._masked.with_own(w, self._own))

    def gradient(self, w: Tensor) -> Tensor:
        g = self._local.gradient(self._masked.with_own(w, self._own))
        return g.masked_fill(~self._masked.shared.to(g.device), 0.0)

    def train(
        self,
        start: Tensor,
        correct=None,
        *,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
        **how: Any,
    ) -> LocalResult:
        """As asked for, from ``start`` with the clients' own entries in it, as in all models that it is compared with.

        An ``optimizer`` of the algorithm's own moves shared entries only. ``how`` is passed on.
        """
        if contrast is not None:
            models = [self._masked.with_own(w, self._own) for w in contrast.models]
            how["contrast"] = replace(contrast, models=torch.stack(models))
        if self._masked.head_epochs:
            self._train_head(start)
        free = self._shared if self._masked.head_epochs else self._shared | self._private
        mine: Optimizer = self._local.optimizer
        if optimizer is not None or not free.all():
            correct = correct or _unchanged  # flat vectors, for what follows
            held = Held(mine, ~free | self._shared if optimizer else ~free)
            mine = Aside(optimizer, self._shared, held) if optimizer else held
        begin = self._masked.with_own(start, self._own)
        result = self._local.train(begin, self._on_shared(correct), optimizer=mine, **how)
        if not self._masked.head_epochs:
            self._keep(begin, result)
        delta = result.delta.masked_fill(~self._masked.shared.to(result.delta.device), 0.0)
        return replace(result, start=start, delta=delta)

    def _train_head(self, start: Tensor) -> None:
        begin = self._masked.with_own(start, self._own)
        alone = Held(self._local.optimizer, ~self._private)
        self._keep(begin, self._local.train(begin, _unchanged, epochs=self._masked.head_epochs, optimizer=alone))

    def _keep(self, begin: Tensor, result: LocalResult) -> None:
        if self._own.shape[1]:
            private = self._masked.private.to(begin.device)
            self._own = begin[:, private] + result.delta[:, private]

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


def _unchanged(g: Tensor, w: Tensor) -> Tensor:
    return g
