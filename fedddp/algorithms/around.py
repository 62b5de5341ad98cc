"""What every wrapper of an algorithm begins with: it does as the one inside does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState
from .base import Algorithm, LocalTraining, Traits


@dataclass(frozen=True, eq=False)
class Around(Algorithm):
    """``inner``, unchanged. A subclass overrides the methods of `Algorithm` in which it differs.

    All of them are forwarded here by name: one that is added to `Algorithm` has to be added here too. What the wrapper
    itself remembers, in the server's ``extra`` or in a client's state, has names that begin with one of ``own``; the
    algorithm inside does not see it, since it may take all of ``extra`` for its optimizer's state.
    """

    own: ClassVar[tuple[str, ...]] = ()
    inner: Algorithm

    def inside(self, server: ServerState) -> ServerState:
        """Return the server's state as ``inner`` knows it."""
        return replace(server, extra=self.without(server.extra)) if self.own else server

    def without(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` without what the wrapper remembers."""
        return {name: rows for name, rows in state.items() if not name.startswith(self.own)}

    def remembering(self, server: ServerState, own: Mapping[str, Tensor]) -> ServerState:
        """Return ``server`` with what the wrapper remembers beside what ``inner`` does."""
        return replace(server, extra={**server.extra, **own})

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def unfit(self, optimizer: Optimizer) -> str | None:
        return self.inner.unfit(optimizer)

    def with_plain_mean(self) -> Self:
        return replace(self, inner=self.inner.with_plain_mean())

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return self.inner.vectors(spec)

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        return self.inner.uploaded(spec)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        return self.inner.init_server(w, spec)

    def init_client(self, server: ServerState) -> ClientState:
        return self.inner.init_client(self.inside(server))

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        return self.inner.client_update(self.inside(server), self.without(client) if self.own else client, local)

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        return self.inner.server_update(self.inside(server), mean, cohort)

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return self.inner.personal_params(self.inside(server), self.without(client) if self.own else client)
