"""Evaluation of the global model on the server's test set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..clients.folded import FoldedModel
from ..comm import Comm, Purpose, interrupt
from ..data import Examples, Normalizer
from ..flat import FlatModule
from ..rng import global_seed
from ..tasks import Task

MOST_LABELS = 100
"""Of more classes than this there is no confusion matrix and no accuracy of each class: both grow too large to read."""
BATCH = 200  # large enough to spread the cost of a call, small enough that activations stay near the cores


@dataclass(frozen=True)
class Score:
    """How good a model is: ``confusion [C, C]`` counts (true label, prediction); ``also``: further metrics by name.

    Where the task names no class or no example was scored, there is no accuracy. ``confusion`` is empty where the task
    names no class or more than `MOST_LABELS`. ``pictures``: what the model draws, see `Task.pictures`.
    """

    accuracy: float | None
    loss: float
    confusion: Tensor
    mistakes: tuple[Mistake, ...] = ()
    also: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def per_class(self) -> Tensor:
        """Accuracy of each true class, [C]; NaN where the test set has none."""
        return self.confusion.diagonal() / self.confusion.sum(dim=1)


@dataclass(frozen=True)
class Mistake:
    """A test example the model got wrong, and how sure it was."""

    image: Tensor
    label: int
    predicted: int
    loss: float


class Evaluator:
    """Scores ``w`` where ``where`` says, ``sharded``, ``rank0`` or ``own``.

    Sharded, rank r takes every R-th test example and the counts are summed; every rank then knows the score. On rank 0,
    the others go on with the next round, in which rank 0 gets fewer clients where they can be trained elsewhere. Own:
    each rank has a test set of its own, and the counts are summed.
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
        target_accuracy: float | None = None,
        seed: int = 0,
        probes: Mapping[str, Examples] | None = None,
    ) -> None:
        """``probes``: other sets, whose accuracy is told under their names beside the test set's score."""
        self._probes = {
            name: Evaluator(task, examples, normalize, comm, where=where, seed=seed)
            for name, examples in (probes or {}).items()
        }
        self._task, self._normalize, self._comm = task, normalize, comm
        self._where, self._every, self._target = where, every, target_accuracy
        self._test_size = len(test)
        self._test = test
        self._takes_part, self._seed = where != "rank0" or comm.rank == 0, seed
        if self._takes_part:
            self._take_share()
            self._model = scoring_model(
                lambda: task.model(seed).to(normalize.dtype),
                comm.device,
                normalize(test.x[:2].to(comm.device)),  # this rank's own share may be empty
                self._outputs,
            )
        self.load = 0
        """What rank 0 did in the last evaluation while the others trained, in training examples."""

    def due(self, round: int, last: bool) -> bool:
        """Whether the model after ``round`` rounds (1-based) is to be evaluated: every so often, and the last one."""
        return last or (self._every > 0 and round % self._every == 0)

    def reached(self, score: Score | None) -> bool:
        """Whether the target accuracy is reached; the same answer on every rank."""
        if self._target is None:
            return False
        accuracy = (score.accuracy if score else None) or 0.0
        return self._comm.any(accuracy >= self._target, Purpose.TARGET_ACCURACY)

    def score(self, w: Tensor, others: Mapping[str, Tensor] | None = None) -> Score | None:
        """The score of ``w [D]``; None on ranks that do not know it (all but rank 0, unless sharded).

        ``others``: further models, whose accuracy and loss are told under their names beside it.
        """
        score, also, others = self._score(w), {}, others or {}
        for name, model in others.items():
            if one := self._score(model):
                also |= {
                    f"{name}_accuracy": one.accuracy,
                    f"{name}_loss": one.loss if math.isfinite(one.loss) else None,
                }
        self.load *= 1 + len(others)
        return score and replace(score, also={**score.also, **also})

    def _score(self, w: Tensor) -> Score | None:
        self._comm.enter("evaluate")
        if self._takes_part and self._members != self._comm.members:  # ranks were lost: their shares are dealt out anew
            self._take_share()
        score = None
        if self._takes_part:
            counts, mistakes = self._measure(w)
            if self._where != "rank0":
                self._comm.all_reduce(counts, Purpose.EVALUATE)
            score = self._scored(counts, mistakes)
        if self._where == "rank0":
            self.load = self._test_size // 3  # a training step is a forward pass and a backward one of twice the work
        also = {name: probe.score(w) for name, probe in self._probes.items()}
        self.load += sum(probe.load for probe in self._probes.values())
        told = {name: one.accuracy for name, one in also.items() if one and one.accuracy is not None}
        return score and replace(score, also=told)

    def _take_share(self) -> None:
        """Of the test examples every one that is this rank's, or all of them on rank 0."""
        self._members = self._comm.members
        ranks = self._members if self._where == "sharded" else (self._comm.rank,)
        own = slice(ranks.index(self._comm.rank), None, len(ranks))
        self._x, self._y = self._test.x[own].to(self._comm.device), self._test.y[own].to(self._comm.device)

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Of the first examples, whatever is drawn at random the same each time."""
        with global_seed(self._seed, "evaluate"):
            return self._task.outputs(module, x, self._test.y[: len(x)].to(x.device))

    def _measure(self, w: Tensor) -> tuple[Tensor, tuple[Mistake, ...]]:
        """Of this rank's examples, of which there may be none: the counts to be summed over ranks, and the mistakes.

        Counts, float64: the C x C cells of the confusion matrix (or, of more than `MOST_LABELS` classes, the number of
        correct examples alone; or nothing, without classes), then the sum of the losses, then the number of examples.
        """
        self._model.load(w)
        task, predicted, losses = self._task, [self._y[:0]], [torch.zeros(0, device=self._y.device)]
        with torch.no_grad(), global_seed(self._seed, "evaluate"):  # a task may draw noise
            for start in range(0, len(self._y), BATCH):
                interrupt.check()
                x, y = self._x[start : start + BATCH], self._y[start : start + BATCH]
                output = task.outputs(self._model.module, self._normalize(x), y)
                losses.append(task.loss(output, y))
                predicted.append(output.argmax(dim=-1))
        loss = torch.cat(losses).double().cpu()
        sums = torch.stack([loss.sum(), torch.tensor(len(loss)).double()])
        if not task.classifies:
            return sums, ()
        guesses = torch.cat(predicted).cpu()
        return torch.cat([self._counted(guesses), sums]), self._mistakes(guesses, loss)

    def _counted(self, predicted: Tensor) -> Tensor:
        y, num_classes = self._y.cpu(), self._task.num_classes
        if num_classes > MOST_LABELS:
            return (predicted == y).sum().double().view(1)
        return (y * num_classes + predicted).bincount(minlength=num_classes**2).double()

    def _mistakes(self, predicted: Tensor, losses: Tensor) -> tuple[Mistake, ...]:
        y = self._y.cpu()
        wrong = torch.where(predicted == y, -1.0, losses)
        worst = [i for i in wrong.argsort(descending=True)[:16].tolist() if wrong[i] >= 0]
        return tuple(Mistake(self._x[i].cpu(), int(y[i]), int(predicted[i]), float(losses[i])) for i in worst)

    def _scored(self, counts: Tensor, mistakes: tuple[Mistake, ...]) -> Score:
        task, (loss, seen) = self._task, counts[-2:].tolist()
        loss = loss / seen if seen else math.nan
        if not task.classifies:
            pictures = task.pictures(self._model.module) if self._comm.rank == 0 else {}
            return Score(None, loss, torch.zeros(0, 0, dtype=torch.float64), pictures=pictures)
        sides = task.num_classes if task.num_classes <= MOST_LABELS else 0
        confusion = counts[: sides**2].view(sides, sides)
        correct = float(confusion.diagonal().sum()) if sides else counts[0].item()
        return Score(correct / seen if seen else None, loss, confusion, mistakes)


def local_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scoring_model(
    build: Callable[[], nn.Module],
    device: torch.device,
    inputs: Tensor,
    outputs: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x),
) -> FlatModule | FoldedModel:
    """The model in evaluation mode, with folded layers where they give the same: faster on a CPU."""
    plain = FlatModule(build(), device)
    plain.module.eval()
    try:
        folded = FoldedModel(build(), device)
        folded.module.eval()
        folded.load(plain.w)
        with torch.no_grad():
            same = torch.allclose(outputs(folded.module, inputs), outputs(plain.module, inputs), rtol=1e-3, atol=1e-4)
    except Exception:  # of any kind: a forward of one's own may ask a layer for what only a plain one has
        return plain
    return folded if same else plain
