"""What every wrapper of an algorithm begins with: it does as the one inside does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, Cohort, LocalResult, Mean, ServerState, Update
from .base import Algorithm, LocalTraining, Traits


@dataclass(frozen=True, eq=False)
class Around(Algorithm):
    """``inner``, unchanged. A subclass overrides the methods of `Algorithm` in which it differs.

    All of them are forwarded here by name: one that is added to `Algorithm` has to be added here too.
    """

    inner: Algorithm

    def for_model(self, spec: FlatSpec) -> Self:
        return replace(self, inner=self.inner.for_model(spec))

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def unfit(self, optimizer: Optimizer) -> str | None:
        return self.inner.unfit(optimizer)

    def with_plain_mean(self) -> Self:
        return replace(self, inner=self.inner.with_plain_mean())

    def vectors(self, dim: int) -> dict[str, int]:
        return self.inner.vectors(dim)

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        return self.inner.uploaded(spec)

    def init_server(self, w: Tensor, num_trainable: int) -> ServerState:
        return self.inner.init_server(w, num_trainable)

    def init_client(self, w: Tensor) -> ClientState:
        return self.inner.init_client(w)

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]:
        return self.inner.client_update(server, client, local)

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        return self.inner.server_update(server, mean, cohort)

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return self.inner.personal_params(server, client)
