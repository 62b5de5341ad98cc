"""The vocabulary of a round: what is passed between the loop, the clients, the algorithm and the server. No logic.

Letters used throughout: N population, m cohort, R ranks, K clients of one block, B examples of one batch,
D length of the flat model vector, P its trainable part (P <= D), d the length of any one vector.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from .flat import FlatSpec

ClientState = dict[str, Tensor]
"""What a client remembers between rounds, name -> [K, d]; empty for stateless algorithms."""

Delivery = Literal["whole", "lossy", "late"]
"""How uploads reach the mean: as they are; rounded or thinned out, the rest lost; the rest of them in later rounds."""


@dataclass(frozen=True)
class Cohort:
    """S_t, the clients of round ``round`` (0-based), ascending; every rank draws the same one."""

    round: int
    ids: tuple[int, ...]
    population: int


@dataclass(frozen=True)
class ServerState:
    """The global model ``w [D]`` and its layout, what the server remembers besides (``extra``, name -> [d]), rounds
    completed."""

    w: Tensor
    spec: FlatSpec
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0

    @property
    def num_trainable(self) -> int:
        """P."""
        return self.spec.num_trainable

    def unchanged(self) -> Self:
        """The state after a round that brought nothing."""
        return replace(self, round=self.round + 1)


@dataclass(frozen=True)
class LocalResult:
    """K clients after local training: how far they moved, ``delta [K, D]``, from ``start`` ([D] or [K, D]).

    ``steps [K]``, mean training ``loss [K]`` and ``accuracy [K]``. What leaves a client is mostly the difference, and
    training can give it with fewer passes over memory than the end point.
    """

    start: Tensor
    delta: Tensor
    steps: Tensor
    loss: Tensor
    accuracy: Tensor

    @property
    def w(self) -> Tensor:
        """Where the clients ended, ``w_k = start + delta [K, D]``."""
        return self.start + self.delta


@dataclass(frozen=True)
class Contrast:
    """A loss besides the task's, of a client's features against those that other models make of the same examples.

    ``models [R, K, D]``; ``loss``: features [B, d] of a batch and theirs [R, B, d] to [B]. Features are what goes into
    the last linear layer.
    """

    models: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Update:
    """All that leaves a client: ``vectors`` (name -> [K, d]) and their weight in the mean, ``weight [K]``."""

    vectors: Mapping[str, Tensor]
    weight: Tensor

    def pack(self, names: Iterable[str]) -> Tensor:
        """The vectors ``names`` side by side in that order, [K, sum d]. Raises KeyError for one that is not there."""
        rows = [self.vectors[name] for name in names]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


ClientUpdate = tuple[Update, ClientState, LocalResult]
"""What a client's part of a round returns: what leaves it, what it remembers from now on, and how it trained."""


@dataclass(frozen=True)
class Mean:
    """All that reaches the server: the weighted means (same names, [d]), the summed weight, the number of clients.

    ``count`` is 0 after a round that brought nothing, None where it is not reported. ``examples``: n, which all clients
    of the population own together and which is public.
    """

    vectors: Mapping[str, Tensor]
    weight: float
    count: int | None
    examples: int


class RoundAborted(RuntimeError):
    """A round that brings nothing, on every rank alike, because its protocol could not be completed safely."""


@dataclass(frozen=True)
class RoundReport:
    """What a round reports, client by client in the cohort's order; the properties are those of `SummedReport`.

    ``loss`` and ``accuracy`` are NaN for a client that failed. ``update_norm``: the weighted mean of ||u_k|| over the
    clients' updates u_k; ``update_cosine``: see `DriftTally`.
    """

    loss: Tensor  # [m]
    accuracy: Tensor  # [m]
    examples: Tensor  # [m] examples a client owns
    failed: tuple[int, ...]
    seconds_train: tuple[float, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)
    aborted: bool = False
    ids: tuple[int, ...] = ()  # [m] the cohort
    update_norm: float | None = None
    update_cosine: float | None = None

    @property
    def losses(self) -> dict[int, float | None]:
        """The training loss of each client that contributed, None if it is not finite."""
        told = zip(self.ids, self.loss.tolist(), strict=True)
        return {k: finite(loss) for k, loss in told if k not in self.failed}

    @property
    def train_loss(self) -> float | None:
        return self._mean(self.loss)

    @property
    def train_accuracy(self) -> float | None:
        return self._mean(self.accuracy)

    @property
    def failures(self) -> int:
        return len(self.failed)

    @property
    def trained_on(self) -> int:
        return int(self.examples[~self.loss.isnan()].sum())

    @property
    def per_client(self) -> dict[str, Tensor]:
        finite = self.loss[self.loss.isfinite()]
        return {"train_loss": finite, "examples": self.examples} if len(finite) else {}

    def _mean(self, values: Tensor) -> float | None:
        """Over the clients that succeeded, weighted by examples; None if that is not finite."""
        good = ~values.isnan()
        weight = self.examples[good].double()
        return finite(float((values[good] * weight).sum() / weight.sum())) if weight.sum() > 0 else None


@dataclass(frozen=True)
class SummedReport:
    """What a round reports where no client may be identified; None for what a privacy protocol does not release.

    Attributes:
        seconds_train: training time of each rank (or of this rank alone).
        failures, trained_on: number of clients that failed, and of examples of those that succeeded.
        train_loss, train_accuracy: means over examples.
        per_client: values of single clients, for histograms.
        reasons: why clients of this rank failed -> how many; empty where single failures may not be reported. The only
            entry that differs between ranks.
        aborted: whether the round brought nothing because its protocol could not be completed.
    """

    seconds_train: tuple[float, ...]
    failures: int | None = None
    trained_on: int | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    per_client: dict[str, Tensor] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    aborted: bool = False
    failed: ClassVar[tuple[int, ...]] = ()
    losses: ClassVar[None] = None  # who contributed is not told
    update_norm: ClassVar[None] = None
    update_cosine: ClassVar[None] = None


Report = RoundReport | SummedReport
"""What a round reports besides its mean, equal on every rank."""


def finite(value: float) -> float | None:
    """``value``, or None for one that is not finite."""
    return value if math.isfinite(value) else None
