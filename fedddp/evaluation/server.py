"""Score the global model on the server's test set."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..clients.folded import FoldedModel
from ..comm import Comm, Purpose, interrupt
from ..data import Examples, Normalizer
from ..errors import first_line
from ..flat import FlatModule, training_in
from ..rng import global_seed
from ..tasks import Task
from ..tasks.metrics import LOWER, MOST_LABELS, Target, metrics_of, of_batch

T = TypeVar("T")
log = logging.getLogger("fedddp")

BATCH = 200  # large enough to spread the cost of a call, small enough that activations stay near the cores
COUNTED_AT_ONCE = 2**20
MOST_OUTPUTS = 2**24
"""Numbers of outputs at once, 64 MB: a language model gives as many as its vocabulary at each position."""


@dataclass(frozen=True)
class Mistake:
    """A misclassified test example."""

    image: Tensor
    label: int
    predicted: int
    loss: float


@dataclass(frozen=True)
class Score:
    """How good a model is.

    Attributes:
        metrics: the task's metrics by name, the primary one first; None where the examples do not determine one.
        loss: mean over the examples.
        confusion: counts by true label and prediction, [C, C]; empty without classes, or with more than `MOST_LABELS`.
        mistakes: up to 16 test examples with the largest loss among the misclassified.
        also: metrics of further evaluations by name.
        pictures: what the model draws, see `Task.pictures`.
        texts: what the model writes, see `Task.texts`.
    """

    metrics: Mapping[str, float | None]
    loss: float
    confusion: Tensor
    mistakes: tuple[Mistake, ...] = ()
    also: Mapping[str, float | None] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """None where the task has none, or if no example was scored."""
        return self.metrics.get("accuracy")

    @property
    def quality(self) -> float:
        """A number that is larger for a better model: the primary metric, negated where less is better, or, without
        one, minus the loss; -inf if unknown."""
        name, value = next(iter(self.metrics.items()), ("loss", self.loss))
        name, value = ("loss", self.loss) if value is None else (name, value)
        return -math.inf if not math.isfinite(value) else -value if name in LOWER else value

    @property
    def per_class(self) -> Tensor:
        """Accuracy of each true class, [C]; NaN where the test set has none."""
        return self.confusion.diagonal() / self.confusion.sum(dim=1)


def outputs_each(task: Task, y: Tensor) -> int:
    """How many numbers a model gives for each example of targets ``y``."""
    return max(1, math.prod(task.output_shape(y[:1]))) if len(y) else 1


def at_once(task: Task, y: Tensor) -> int:
    """How many examples are scored together, so that their outputs are at most `MOST_OUTPUTS` numbers."""
    return max(1, min(BATCH, MOST_OUTPUTS // outputs_each(task, y)))


class Scorer:
    """A model in evaluation mode and the test examples of this rank, of which there may be none."""

    def __init__(self, task: Task, test: Examples, normalize: Normalizer, device: torch.device, seed: int) -> None:
        self._task, self._test, self._normalize, self._device, self._seed = task, test, normalize, device, seed
        self._own = test
        few = normalize(test.x[:2].to(device))
        self._model = scoring_model(lambda: training_in(task.model(seed), normalize.dtype), device, few, self._outputs)

    def take(self, rows: slice) -> None:
        """Score these rows of the test set from now on."""
        self._own = Examples(self._test.x[rows].to(self._device), self._test.y[rows].to(self._device))

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Outputs for the first test examples; what is drawn at random is the same each time."""
        with global_seed(self._seed, "evaluate"):
            return self._task.outputs(module, x, self._test.y[: len(x)].to(x.device))

    def measure(self, w: Tensor) -> tuple[Tensor, tuple[Mistake, ...]]:
        """The counts of ``w [D]``, to be summed over ranks, and this rank's mistakes.

        Counts, float64: the sums of the task's metrics, the sum of the losses, the number of examples.
        """
        self._model.load(w)
        task, own_y = self._task, self._own.y
        predicted, losses = [own_y[:0]], [torch.zeros(0, device=own_y.device)]
        sums = torch.zeros(sum(part.size for part in task.sums), dtype=torch.float64)
        numbers = outputs_each(task, own_y)
        batch = at_once(task, own_y)
        waiting, first = list[Tensor](), 0  # outputs not counted yet: a call costs more than its size
        with torch.no_grad(), global_seed(self._seed, "evaluate"):  # a task may draw noise
            for start in range(0, len(own_y), batch):
                interrupt.check()
                x, y = self._own.x[start : start + batch], own_y[start : start + batch]
                output = task.outputs(self._model.module, self._normalize(x), y)
                losses.append(task.loss(output, y))
                waiting.append(output)
                end = start + len(y)
                if end < len(own_y) and (end - first) * numbers < COUNTED_AT_ONCE:
                    continue
                outputs = torch.cat(waiting)
                sums += of_batch(task.sums, outputs, own_y[first:end])
                if task.classifies:
                    predicted.append(outputs.argmax(dim=-1))
                waiting, first = [], end
        loss = torch.cat(losses).double().cpu()
        counts = torch.cat([sums, torch.stack([loss.sum(), torch.tensor(len(loss)).double()])])
        return counts, self._mistakes(torch.cat(predicted).cpu(), loss) if task.classifies else ()

    def _mistakes(self, predicted: Tensor, losses: Tensor) -> tuple[Mistake, ...]:
        y = self._own.y.cpu()
        wrong = torch.where(predicted == y, -1.0, losses)
        worst = [i for i in wrong.argsort(descending=True)[:16].tolist() if wrong[i] >= 0]
        return tuple(Mistake(self._own.x[i].cpu(), int(y[i]), int(predicted[i]), float(losses[i])) for i in worst)

    def score(self, counts: Tensor, mistakes: tuple[Mistake, ...], *, draws: bool) -> Score:
        """The score that ``counts`` give. ``draws``: whether a model that draws pictures does."""
        task, (loss, seen) = self._task, counts[-2:].tolist()
        loss = loss / seen if seen else math.nan
        found = metrics_of(task.sums, counts[:-2])
        metrics = {name: found[name] for name in task.metrics}
        sides = task.num_classes if task.classifies and task.num_classes <= MOST_LABELS else 0
        confusion = counts[: sides**2].view(sides, sides)
        if not draws:
            return Score(metrics, loss, confusion, mistakes)
        module = self._model.module
        pictures = self._shown("pictures", lambda: task.pictures(module))
        texts = self._shown("texts", lambda: task.texts(module, self._device))
        return Score(metrics, loss, confusion, mistakes, pictures=pictures, texts=texts)

    def _shown(self, what: str, make: Callable[[], dict[str, T]]) -> dict[str, T]:
        """What ``make`` gives; nothing, with a warning, where it fails: a run does not end by what it shows."""
        try:
            return make()
        except Exception as error:
            log.warning("the model's %s cannot be shown (%s); they are left out", what, first_line(error))
            return {}


class Evaluator:
    """Scores the global model on the test set.

    Args:
        task, test, normalize: what the model learns, the test examples, and how inputs are normalised.
        comm: the ranks.
        where: "sharded": rank r takes every R-th test example, and the counts are summed. "rank0": rank 0 evaluates
            while the others continue with the next round, in which rank 0 gets fewer clients where these can be trained
            elsewhere. "own": each rank has a test set of its own, and the counts are summed.
        every: rounds between evaluations; 0 = only after the last.
        target: metric at which the run stops.
        seed: seed of the model's shape and of what is drawn at random.
        probes: further sets by name, whose accuracies are added to the score.

    Attributes:
        load: work of rank 0 in the last evaluation while the others trained, in training examples.
    """

    def __init__(
        self,
        task: Task,
        test: Examples,
        normalize: Normalizer,
        comm: Comm,
        *,
        where: str = "sharded",
        every: int = 1,
        target: Target | None = None,
        seed: int = 0,
        probes: Mapping[str, Examples] | None = None,
    ) -> None:
        self._comm, self._where, self._every, self._target = comm, where, every, target
        self._members: tuple[int, ...] = ()
        sets = {"": test, **(probes or {})}
        takes_part = where != "rank0" or comm.rank == 0
        self._scorers = {n: Scorer(task, s, normalize, comm.device, seed) for n, s in sets.items() if takes_part}
        # a training step is a forward pass and a backward pass of twice the work
        self._alone = sum(len(s) // 3 for s in sets.values()) if where == "rank0" else 0
        self.load = 0

    def due(self, round: int, last: bool) -> bool:
        """Whether the model after ``round`` rounds (1-based) is to be evaluated: every so often, and the last one."""
        return last or (self._every > 0 and round % self._every == 0)

    def reached(self, score: Score | None) -> bool:
        """Whether the target is reached; the same answer on every rank."""
        if self._target is None:
            return False
        known = {**score.metrics, "loss": score.loss} if score else {}
        return self._comm.any(self._target.met(known.get(self._target.metric)), Purpose.TARGET_ACCURACY)

    def score(self, w: Tensor, others: Mapping[str, Tensor] | None = None) -> Score | None:
        """The score of ``w [D]``; None on ranks that do not know it (with "rank0", all but rank 0).

        ``others``: further models by name, whose accuracies and losses are added to the score.
        """
        score, also, others = self._score(w), {}, others or {}
        for name, model in others.items():
            if one := self._score(model):
                also |= {
                    f"{name}_accuracy": one.accuracy,
                    f"{name}_loss": one.loss if math.isfinite(one.loss) else None,
                }
        self.load = self._alone * (1 + len(others))
        return score and replace(score, also={**score.also, **also})

    def _score(self, w: Tensor) -> Score | None:
        self._comm.enter("evaluate")
        if self._members != self._comm.members:  # at first, and when ranks were lost
            self._members = self._comm.members
            ranks = self._members if self._where == "sharded" else (self._comm.rank,)
            for scorer in self._scorers.values():
                scorer.take(slice(ranks.index(self._comm.rank), None, len(ranks)))
        scores = {name: self._summed(scorer, w) for name, scorer in self._scorers.items()}
        score = scores.pop("", None)
        also = {name: one.accuracy for name, one in scores.items() if one.accuracy is not None}
        return score and replace(score, also=also)

    def _summed(self, scorer: Scorer, w: Tensor) -> Score:
        counts, mistakes = scorer.measure(w)
        if self._where != "rank0":
            self._comm.all_reduce(counts, Purpose.EVALUATE)
        return scorer.score(counts, mistakes, draws=self._comm.rank == 0)


def scoring_model(
    build: Callable[[], nn.Module],
    device: torch.device,
    inputs: Tensor,
    outputs: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x),
) -> FlatModule | FoldedModel:
    """The model in evaluation mode, with folded layers (faster on a CPU) if they give the same for ``inputs``."""
    plain = FlatModule(build(), device)
    plain.module.eval()
    try:
        folded = FoldedModel(build(), device)
        folded.module.eval()
        folded.load(plain.w)
        with torch.no_grad():
            same = torch.allclose(outputs(folded.module, inputs), outputs(plain.module, inputs), rtol=1e-3, atol=1e-4)
    except Exception:  # of any kind: a user's forward may use what only a plain layer has
        return plain
    return folded if same else plain
