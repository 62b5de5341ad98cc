"""Personalization by a mask: some of the model belongs to each client, and any algorithm learns the rest."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..registry.choice import Choice
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import Algorithm, Around, LocalTraining
from .fedavg import FedAvg
from .masked import Masks, OnOwnPart

PRIVATE = "personal.private"
"""In a client's state: its private entries, [K, q]."""
INNER: dict[str, type] = {}
"""What can be wrapped: every algorithm that is no wrapper of this kind itself."""

Patterns = tuple[str, ...]
Private = Annotated[
    Patterns, Field(description="tensors that stay with each client, by name ('*.bias') or by layer ('@BatchNorm*')")
]


@dataclass(frozen=True)
class Personal(Around):
    """``inner`` on the shared part of the model; the private part v_k never leaves client k.

        (u_k, v_k) <- local training of `inner` from (u_t, v_k);   u_{t+1} = inner's server step on the u_k - u_t

    Pillutla et al. 2022, "Federated learning with partial model personalization", Algorithm 1, both parts trained
    together ("FedSim"). Arivazhagan et al. 2019 (private last layers), Li et al. 2021 (private normalisation layers)
    and Liang et al. 2020 (private first layers) are of this form.
    Symbols: u = the shared entries of server.w, v_k = client["personal.private"], the entries that ``private`` names.

    ``frozen`` entries are neither: they stay as the first model has them, on every client and on the server. For
    buffers that means: BatchNorm trains with batch statistics as ever, but the global model keeps its initial ones.
    """

    inner: Annotated[
        Algorithm, Choice(INNER, {"name": "fedavg"}), Field(description="the algorithm of the shared part")
    ] = FedAvg()
    private: Private = ()
    frozen: Annotated[
        Patterns, Field(description="tensors that stay as they are at first, neither averaged nor private")
    ] = ()

    own = (PRIVATE,)

    def masks(self, spec: FlatSpec) -> Masks:
        """Return which entries of a model are private, frozen and shared.

        Raises:
            ValueError: a pattern matches nothing, an entry is both private and frozen, or nothing is shared.
        """
        return _masks(self.patterns(spec, "private"), self.patterns(spec, "frozen"), spec, spec.kinds)

    def patterns(self, spec: FlatSpec, key: str) -> Patterns:
        """Return the patterns of ``key`` ("private" or "frozen") for this model. Raises ValueError."""
        return tuple(getattr(self, key))

    def epochs_before(self) -> int:
        """Return for how many epochs the private entries train alone, before the shared ones do."""
        return 0

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        lengths = self.masks(spec).lengths
        return {name: lengths.get(length, length) for name, length in self.inner.vectors(spec).items()}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        return self.masks(spec).uploaded(spec)

    def init_client(self, server: ServerState) -> ClientState:
        private = self.masks(server.spec).private.to(server.w.device)
        own = {PRIVATE: server.w[private].unsqueeze(0)} if private.any() else {}
        return {**super().init_client(server), **own}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        masks, theirs = self.masks(server.spec), self.without(client)
        training = OnOwnPart(masks, local, client.get(PRIVATE, server.w.new_empty(1, 0)), self.epochs_before())
        update, state, result = self.inner.client_update(server, theirs, training)
        vectors = {name: masks.shortened(rows) for name, rows in update.vectors.items()}
        state = {name: masks.still(rows, theirs[name]) for name, rows in state.items()}
        own = {PRIVATE: training.own} if PRIVATE in client else {}
        return Update(vectors, update.weight), {**state, **own}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        masks, full = self.masks(server.spec), self.inner.vectors(server.spec)
        vectors = {name: masks.restored(vector, full[name]) for name, vector in mean.vectors.items()}
        after = self.inner.server_update(server, replace(mean, vectors=vectors), cohort)
        shared = masks.shared.to(server.w.device)  # elsewhere a server optimizer's decay or momentum must not move w
        return replace(after, w=torch.where(shared, after.w, server.w))

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        w = super().personal_params(server, client)
        return self.masks(server.spec).with_own(w, client[PRIVATE]) if PRIVATE in client else w


@lru_cache(maxsize=16)
def _masks(private: Patterns, frozen: Patterns, spec: FlatSpec, kinds: tuple[str, ...]) -> Masks:
    """See `Personal.masks`; ``kinds`` are those of ``spec``, which is equal to one with other kinds."""
    mine, still = _mask(spec, "private", private), _mask(spec, "frozen", frozen)
    if (mine & still).any():
        raise ValueError(f"algorithm.frozen={list(frozen)}: some of these are private too; name each once")
    if not (~(mine | still))[: spec.num_trainable].any():
        raise ValueError(
            f"algorithm.private={list(private)}: leaves nothing that is trained together; name fewer tensors"
        )
    return Masks(mine, still, spec.num_trainable)


def _mask(spec: FlatSpec, key: str, patterns: Patterns) -> Tensor:
    for pattern in patterns:
        if not spec.mask([pattern]).any():
            known = ", ".join(dict.fromkeys([*spec.names, *(f"@{kind}" for kind in spec.kinds)]))
            raise ValueError(f"algorithm.{key}={list(patterns)}: {pattern!r} matches nothing of {known}")
    return spec.mask(patterns)
