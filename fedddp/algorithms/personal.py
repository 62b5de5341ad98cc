"""Personalization by a mask: some of the model belongs to each client, and any algorithm learns the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..registry.choice import Choice
from .around import Around
from .base import Algorithm
from .fedavg import FedAvg
from .masked import Masked

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

    def for_model(self, spec: FlatSpec) -> Masked:
        """Raises ValueError for a pattern that matches nothing, and if nothing would be left to share."""
        private, frozen = self._mask(spec, "private"), self._mask(spec, "frozen")
        if (private & frozen).any():
            raise ValueError(f"algorithm.frozen={list(self.frozen)}: some of these are private too; name each once")
        if not (~(private | frozen))[: spec.num_trainable].any():
            raise ValueError(
                f"algorithm.private={list(self.patterns(spec, 'private'))}: leaves nothing that is trained together; "
                "name fewer tensors"
            )
        return Masked(self.inner.for_model(spec), private, frozen, spec.num_trainable)

    def patterns(self, spec: FlatSpec, key: str) -> Patterns:
        """The patterns of ``key`` ("private" or "frozen") for this model."""
        return getattr(self, key)

    def _mask(self, spec: FlatSpec, key: str) -> Tensor:
        patterns = self.patterns(spec, key)
        for pattern in patterns:
            if not spec.mask([pattern]).any():
                known = ", ".join(dict.fromkeys([*spec.names, *(f"@{kind}" for kind in spec.kinds)]))
                raise ValueError(f"algorithm.{key}={list(patterns)}: {pattern!r} matches nothing of {known}")
        return spec.mask(patterns)
