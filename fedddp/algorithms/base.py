"""What an algorithm is: hyper-parameters with pure methods. State comes in and goes out, it is never kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, Cohort, Contrast, Delivery, LocalResult, Mean, ServerState, Update


class LocalTraining(Protocol):
    """K clients ready to train, as the clients' side offers them (see `fedddp.clients.Local`)."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def round(self) -> int: ...

    @property
    def num_examples(self) -> Tensor: ...

    @property
    def mean_examples(self) -> float:
        """Over all clients of the population."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """The client optimizer, as it is in this round."""
        ...

    def train(
        self,
        start: Tensor,
        correct=None,
        *,
        epochs: int | None = None,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
    ) -> LocalResult: ...

    def loss(self, w: Tensor) -> Tensor:
        """Mean loss of each client's own examples at ``w`` ([D] or [K, D]), [K]."""
        ...

    def gradient(self, w: Tensor) -> Tensor:
        """Mean gradient of each client's batches at ``w``, [K, D]; 0 for buffers."""
        ...


class Algorithm(Protocol):
    """The seam between the loop and a paper. P of the D entries of ``w`` are trainable, the rest float buffers."""

    def for_model(self, spec: FlatSpec) -> Algorithm:
        """The algorithm for a model whose flat vector is laid out so: where a method needs to know layers by name."""
        ...

    def unfit(self, optimizer: Optimizer, privacy: str, delivery: Delivery) -> str | None:
        """Why it cannot be run with these: client optimizer, level of privacy, way of uploads; None if it can.

        The reason names a remedy.
        """
        ...

    def vectors(self, dim: int) -> dict[str, int]:
        """What a client uploads, name -> length; the layout of the round's one collective."""
        ...

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        """How an uploaded vector of a model's length is laid out, on a model of ``spec``."""
        ...

    def init_server(self, w: Tensor, num_trainable: int) -> ServerState: ...

    def init_client(self, w: Tensor) -> ClientState:
        """The state of a client that never took part, name -> [1, d]."""
        ...

    def client_update(
        self, server: ServerState, client: ClientState, local: LocalTraining
    ) -> tuple[Update, ClientState, LocalResult]: ...

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState: ...

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        """What each client would deploy, [K, D] or [D]."""
        ...
