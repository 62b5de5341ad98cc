"""Evaluation of what each client would deploy, on the examples that it holds out of its own.

Beside it, on the same examples, the global model: what a client gains or loses by its own. Letters: c clients scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..clients import ClientStore
from ..comm import Comm, Purpose, interrupt
from ..data import ClientData
from ..rng import numpy_generator
from ..sampling import blocks, home_rank
from ..tasks import Task
from ..types import ServerState
from .server import BATCH, scoring_model

MOST_CLIENTS = 1000
"""Of a larger population a random sample of so many is scored, the same in every round."""
PARAMETERS_AT_ONCE = 2**24  # of personal models side by side: 64 MB


@dataclass(frozen=True)
class Spread:
    """How accuracies [c] are distributed over clients, each of which counts the same."""

    accuracy: Tensor

    @property
    def mean(self) -> float:
        return float(self.accuracy.mean())

    @property
    def std(self) -> float:
        return float(self.accuracy.std(correction=0))

    @property
    def worst10(self) -> float:
        """The mean over the tenth of the clients (rounded up) that fares worst."""
        return float(self.accuracy.sort().values[: -(-len(self.accuracy) // 10)].mean())


@dataclass(frozen=True)
class ClientScores:
    """Accuracies of the clients ``ids`` on their held-out examples: of their own models, and of the global one."""

    ids: tuple[int, ...]
    personal: Spread
    global_model: Spread

    def metrics(self) -> dict[str, float | int]:
        """As ``metrics.jsonl`` names them; "test_accuracy", of the server's test set, is another thing."""
        figures: dict[str, float | int] = {"personal_clients": len(self.ids)}
        for name, spread in (("personal", self.personal), ("global_on_clients", self.global_model)):
            for figure in ("mean", "std", "worst10"):
                figures[f"{name}_accuracy_{figure}"] = getattr(spread, figure)
        return figures


class ClientEvaluator:
    """Scores clients at home: where their state and their examples are. What leaves a rank is two figures a client."""

    def __init__(
        self, task: Task, held: ClientData | None, algorithm: Algorithm, comm: Comm, *, every: int, seed: int
    ) -> None:
        """``held``: the examples that clients hold out; without any, nothing is ever due."""
        self._task, self._held, self._algorithm, self._comm, self._seed = task, held, algorithm, comm, seed
        self._every = every if held else 0
        self._model = None
        self._ids = self._scored() if self._every else []

    def due(self, round: int, last: bool) -> bool:
        """Whether clients are to be scored after ``round`` rounds (1-based): every so often, and after the last."""
        return self._every > 0 and (last or round % self._every == 0)

    def score(self, server: ServerState, store: ClientStore) -> ClientScores:
        """The scores after a round that left ``server`` and ``store``, on every rank. One small all_reduce."""
        self._comm.enter("evaluate clients")
        slots = torch.zeros(2, len(self._ids), dtype=torch.float64)
        at = {k: i for i, k in enumerate(self._ids) if home_rank(k, self._comm.world_size) == self._comm.rank}
        for ids in blocks(tuple(at), max(1, PARAMETERS_AT_ONCE // len(server.w))):
            places = [at[k] for k in ids]
            slots[1, places] = self._accuracies(server.w, ids)
            own = self._algorithm.personal_params(server, store.latest(ids))
            slots[0, places] = slots[1, places] if own is server.w else self._accuracies(own, ids)
        self._comm.all_reduce(slots, Purpose.EVALUATE_CLIENTS)
        return ClientScores(tuple(self._ids), Spread(slots[0]), Spread(slots[1]))

    def _scored(self) -> list[int]:
        """The clients that have held examples out, or a sample of them."""
        assert self._held is not None
        able = self._held.sizes.nonzero().flatten().numpy()
        if len(able) > MOST_CLIENTS:
            able = numpy_generator(self._seed, "evaluate clients").choice(able, MOST_CLIENTS, replace=False)
        return sorted(able.tolist())

    def _accuracies(self, w: Tensor, ids: Sequence[int]) -> Tensor:
        """Of the models ``w`` ([D], or [K, D] of one each) on the held-out examples of ``ids``, [K]."""
        rows = w.view(-1, w.shape[-1]).expand(len(ids), -1)
        return torch.tensor([self._accuracy(k, row) for k, row in zip(ids, rows, strict=True)], dtype=torch.float64)

    def _accuracy(self, client: int, w: Tensor) -> float:
        assert self._held is not None
        x, y = self._held.examples(client)
        normalize = self._held.normalize
        if self._model is None:
            build = lambda: self._task.model(self._seed).to(normalize.dtype)  # noqa: E731
            outputs = lambda module, x: self._task.outputs(module, x, y[: len(x)])  # noqa: E731
            self._model = scoring_model(build, self._comm.device, normalize(x[:2]), outputs)
        self._model.load(w)
        right = 0
        for first in range(0, len(y), BATCH):
            interrupt.check()
            labels = y[first : first + BATCH]
            with torch.no_grad():
                outputs = self._task.outputs(self._model.module, normalize(x[first : first + BATCH]), labels)
            right += int(self._task.correct(outputs, labels).sum())
        return right / len(y)
