"""What an algorithm is: hyper-parameters with pure methods. State comes in and goes out, it is never kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, Self

from torch import Tensor

from ..flat import FlatSpec
from ..optim import Optimizer
from ..types import ClientState, ClientUpdate, Cohort, Contrast, Delivery, LocalResult, Mean, ServerState


class LocalTraining(Protocol):
    """K clients ready to train, as the clients' side offers them (see `fedddp.clients.Local`)."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def round(self) -> int: ...

    @property
    def num_examples(self) -> Tensor: ...

    @property
    def counted(self) -> Tensor:
        """Examples, each as the fraction of its positions that have a target, [K] float64."""
        ...

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

    def after(self, steps: Tensor) -> Self:
        """The same clients, whose batches follow those of the ``steps [K]`` that they took before."""
        ...

    def loss(self, w: Tensor) -> Tensor:
        """Mean loss of each client's own examples at ``w`` ([D] or [K, D]), [K]."""
        ...

    def gradient(self, w: Tensor) -> Tensor:
        """Mean gradient of each client's batches at ``w``, [K, D]; 0 for buffers."""
        ...


class TrainingAround:
    """The training of K clients as ``local`` offers it. A subclass overrides that in which it differs."""

    def __init__(self, local: LocalTraining) -> None:
        self._local = local

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
    def counted(self) -> Tensor:
        return self._local.counted

    @property
    def mean_examples(self) -> float:
        return self._local.mean_examples

    @property
    def optimizer(self) -> Optimizer:
        return self._local.optimizer

    def train(
        self,
        start: Tensor,
        correct=None,
        *,
        epochs: int | None = None,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
    ) -> LocalResult:
        return self._local.train(start, correct, epochs=epochs, optimizer=optimizer, contrast=contrast)

    def after(self, steps: Tensor) -> Self:
        changed = copy(self)
        changed._local = self._local.after(steps)
        return changed

    def loss(self, w: Tensor) -> Tensor:
        return self._local.loss(w)

    def gradient(self, w: Tensor) -> Tensor:
        return self._local.gradient(w)


def unchanged(g: Tensor, w: Tensor) -> Tensor:
    """The correction that changes nothing: with it, an optimizer gets flat vectors."""
    return g


@dataclass(frozen=True)
class Traits:
    """What an algorithm needs of the rest of a run; the checks across configuration keys read it.

    Attributes:
        weighting: a client's weight in the mean: its number of examples, of tokens that are predicted, 1, or "auto",
            which the sampler of cohorts and the level of privacy decide.
        clusters: the number of models that are trained side by side.
        trainings: how often a client goes through its local epochs in a round.
        contrasts: whether training compares features with those of other models (see `fedddp.types.Contrast`).
        reads_losses: whether what a client uploads depends on its loss, which no noise covers.
        clippable: whether an update may be scaled down and noise added to the sum of all updates.
        deliveries: the ways of uploads that it works with.
        restarts: whether what clients train begins anew in every round.
        moves_base: whether the server adds to layers that have low-rank adapters: they get a part in the vector for it.
        fragments: the number of rounds after which an upload is of the same entries of the model again.
    """

    weighting: Literal["auto", "examples", "tokens", "uniform"] = "auto"
    clusters: int = 1
    trainings: int = 1
    contrasts: bool = False
    reads_losses: bool = False
    clippable: bool = True
    deliveries: frozenset[Delivery] = frozenset({"whole", "lossy", "late"})
    moves_base: bool = False
    restarts: bool = False
    fragments: int = 1


UNCUT: frozenset[Delivery] = frozenset({"whole", "late"})
"""The ways of uploads on which nothing is lost for good."""


class Algorithm(ABC):
    """The base class of algorithms. P of the D entries of ``w`` are trainable, the rest float buffers."""

    @property
    def traits(self) -> Traits:
        """What the algorithm needs of the rest of a run."""
        return Traits()

    def unfit(self, optimizer: Optimizer) -> str | None:
        """Return why it cannot be run with a client optimizer, and a remedy; None if it can."""
        return None

    def with_plain_mean(self) -> Self:
        """Return the algorithm with ``weighting="uniform"`` where it was "auto"."""
        return self

    @abstractmethod
    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        """Return what a client uploads, name -> length; the layout of the round's one collective.

        Raises:
            ValueError: the algorithm does not fit a model of ``spec``.
        """

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        """Return the layout of an uploaded vector of a model's length, on a model of ``spec``."""
        return spec

    @abstractmethod
    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        """Return the state of the server before the first round, from w_0 [D] on a model of ``spec``."""

    def init_client(self, server: ServerState) -> ClientState:
        """Return the state of a client that takes part for the first time, in a round that begins with ``server``.

        Returns:
            name -> [1, d]; empty for an algorithm whose clients remember nothing.
        """
        return {}

    @abstractmethod
    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        """Train K clients; return their updates, their new states and the result of the training."""

    @abstractmethod
    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        """Return the state of the server after a round with this mean of the updates."""

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        """Return what each client would deploy, [K, D] or [D]."""
        return server.w


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
