"""Score each client's own model and the global model on examples that the client holds out; average client models.

Letters: c clients scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algorithms import FIRST_MODEL, LAST_MODEL, Algorithm
from ..clients import ClientStore
from ..comm import Comm, Purpose, interrupt
from ..data import ClientData
from ..errors import Diverged
from ..rng import numpy_generator
from ..sampling import blocks, home_rank
from ..tasks import Task
from ..tasks.metrics import LOWER
from ..types import ServerState
from .contribution import Contributions
from .server import Evaluator, Score, at_once, scoring_model

MOST_CLIENTS = 1000
"""Of a larger population a random sample of this size is scored, the same in every round."""
PARAMETERS_AT_ONCE = 2**24  # of models side by side: 64 MB


@dataclass(frozen=True)
class Spread:
    """The distribution of ``accuracy`` [c] over clients, each of which counts the same.

    ``lower``: whether less is better of what a task measures in its place.
    """

    accuracy: Tensor
    lower: bool = False

    @property
    def mean(self) -> float:
        return float(self.accuracy.mean())

    @property
    def std(self) -> float:
        return float(self.accuracy.std(correction=0))

    @property
    def jain(self) -> float:
        """Jain's index (sum x)^2 / (c sum x^2): 1 where all clients fare alike, 1/c where one alone has anything."""
        squares = float(self.accuracy.square().sum())
        return float(self.accuracy.sum()) ** 2 / (len(self.accuracy) * squares) if squares else 1.0

    @property
    def worst10(self) -> float:
        """The mean over the worst tenth of the clients, rounded up."""
        return float(self.accuracy.sort(descending=self.lower).values[: -(-len(self.accuracy) // 10)].mean())


@dataclass(frozen=True)
class ClientScores:
    """Accuracies of the own models of the clients ``ids``, and of the global model, on their held-out examples.

    ``measured``: what is measured, see `Task.measured`.
    """

    ids: tuple[int, ...]
    personal: Spread
    global_model: Spread
    measured: str = "accuracy"

    def metrics(self) -> dict[str, float | int]:
        """The entries of ``metrics.jsonl``."""
        figures: dict[str, float | int] = {"personal_clients": len(self.ids)}
        for name, spread in (("personal", self.personal), ("global_on_clients", self.global_model)):
            for figure in ("mean", "std", "worst10", "jain"):
                figures[f"{name}_{self.measured}_{figure}"] = getattr(spread, figure)
        return figures


class ClientEvaluator:
    """Scores clients on the rank that has their state and examples, which sends two numbers per client."""

    def __init__(
        self, task: Task, held: ClientData | None, algorithm: Algorithm, comm: Comm, *, every: int, seed: int
    ) -> None:
        """``held``: the held-out examples of clients; without any, nothing is ever due."""
        self._task, self._held, self._algorithm, self._comm, self._seed = task, held, algorithm, comm, seed
        self._every = every if held else 0
        self._model = None
        self._ids = self._scored() if self._every else []

    def due(self, round: int, last: bool) -> bool:
        """Whether clients are to be scored after ``round`` rounds (1-based): every so often, and after the last one."""
        return self._every > 0 and (last or round % self._every == 0)

    def score(self, server: ServerState, store: ClientStore) -> ClientScores:
        """The scores for the states ``server`` and ``store``, on every rank, by one small all_reduce."""
        self._comm.enter("evaluate clients")
        slots = torch.zeros(2, len(self._ids), dtype=torch.float64)
        at = {k: i for i, k in enumerate(self._ids) if home_rank(k, self._comm.world_size) == self._comm.rank}
        new = self._algorithm.init_client(server)
        for ids in blocks(tuple(at), max(1, PARAMETERS_AT_ONCE // len(server.w))):
            columns = [at[k] for k in ids]
            slots[1, columns] = self._accuracies(server.w, ids)
            own = self._algorithm.personal_params(server, store.latest(ids, new))
            slots[0, columns] = slots[1, columns] if own is server.w else self._accuracies(own, ids)
        self._comm.all_reduce(slots, Purpose.EVALUATE_CLIENTS)
        measured = self._task.measured
        own, common = (Spread(row, measured in LOWER) for row in slots)
        return ClientScores(tuple(self._ids), own, common, measured)

    def _scored(self) -> list[int]:
        """The clients with held-out examples, or a sample of them."""
        assert self._held is not None
        able = self._held.sizes.nonzero().flatten().numpy()
        if len(able) > MOST_CLIENTS:
            able = numpy_generator(self._seed, "evaluate clients").choice(able, MOST_CLIENTS, replace=False)
        return sorted(able.tolist())

    def _accuracies(self, w: Tensor, ids: Sequence[int]) -> Tensor:
        """Accuracies [K] of ``w``, one model [D] or one each [K, D], on the held-out examples of ``ids``."""
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
        right, batch = 0.0, at_once(self._task, y)
        for first in range(0, len(y), batch):
            interrupt.check()
            labels = y[first : first + batch]
            with torch.no_grad():
                outputs = self._task.outputs(self._model.module, normalize(x[first : first + batch]), labels)
            right += float(self._task.correct(outputs, labels).sum())
        return right / len(y)


@dataclass(frozen=True)
class ClientsMean:
    """The mean of all clients' last models, which some papers evaluate instead of the server's model (FedDyn).

    sum_k p_k w_k over all clients, w_k the last model that client k trained (w_0 before), p_k from ``weights`` [N].
    """

    weights: Tensor
    comm: Comm

    def models(self, store: ClientStore, server: ServerState) -> Mapping[str, Tensor]:
        """The mean for the states ``store`` and ``server``, on every rank, by one all_reduce of a model."""
        self.comm.enter("mean of the clients' models")
        first = server.extra[FIRST_MODEL]
        p = (self.weights / self.weights.sum()).double()
        total = torch.zeros(len(first) + 1, dtype=torch.float64, device=first.device)  # the last entry: sum of p_k
        for ids in blocks(tuple(sorted(store.touched)), max(1, PARAMETERS_AT_ONCE // len(first))):
            mine = p[list(ids)].to(first.device)
            total[:-1] += mine @ store.latest(ids, {LAST_MODEL: first[None]})[LAST_MODEL].double()
            total[-1] += mine.sum()
        total = self.comm.all_reduce(total, Purpose.CLIENTS_MEAN)
        return {"clients_mean": (total[:-1] + (1 - total[-1]) * first.double()).to(first)}


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated after a round.

    Attributes:
        server: evaluates the server's model.
        clients: evaluates what each client would deploy.
        mean: gives the mean of the clients' last models, which is evaluated with the server's, if it is asked for.
        contributions: has what each client contributed to the round, if that is asked for.
    """

    server: Evaluator
    clients: ClientEvaluator
    mean: ClientsMean | None
    contributions: Contributions | None = None

    def after_round(
        self, server: ServerState, store: ClientStore, last: bool
    ) -> tuple[Score | None, ClientScores | None]:
        """Return the scores that are due after ``server.round`` rounds; ``last``: whether no round follows.

        Raises Diverged, on every rank alike, for a model that is not finite: no checkpoint is made of it.
        """
        if not server.w.isfinite().all():
            raise Diverged(
                f"after round {server.round} the model has NaN or infinity, though the mean of the updates had none: "
                "lower algorithm.server_optimizer.lr or client.optimizer.lr; the checkpoints before it stay"
            )
        score = clients = None
        if self.server.due(server.round, last):
            score = self.server.score(server.w, self.mean.models(store, server) if self.mean else {})
        if score and self.contributions:
            score = replace(score, also={**score.also, **self.contributions.after(server.round)})
        if self.clients.due(server.round, last):
            clients = self.clients.score(server, store)
        return score, clients
