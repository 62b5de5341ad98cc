"""Evaluation of the global model on the server's test set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from . import interrupt
from .clients.folded import FoldedModel
from .comm import Comm
from .data import Examples, Normalizer
from .flat import FlatModule
from .rng import global_seed
from .tasks import Task

BATCH = 200  # large enough to spread the cost of a call, small enough that activations stay near the cores


@dataclass(frozen=True)
class Score:
    """How good a model is: ``confusion [C, C]`` counts (true label, prediction); ``also``: further metrics by name.

    Where the task names no class, there is no accuracy, and ``confusion`` is empty. ``pictures``: what the model draws,
    see `Task.pictures`.
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
                normalize(self._x[:2]),
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
        return self._comm.any(accuracy >= self._target, "target accuracy")

    def score(self, w: Tensor) -> Score | None:
        """The score of ``w [D]``; None on ranks that do not know it (all but rank 0, unless sharded)."""
        self._comm.enter("evaluate")
        if self._takes_part and self._members != self._comm.members:  # ranks were lost: their shares are dealt out anew
            self._take_share()
        score = self._measure(w) if self._takes_part else None
        if self._where == "rank0":
            self.load = self._test_size // 3  # a training step is a forward pass and a backward one of twice the work
        else:
            assert score is not None
            score = self._summed(score)
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
            return self._task.outputs(module, x, self._y[: len(x)])

    def _measure(self, w: Tensor) -> Score:
        self._model.load(w)
        task, predicted, losses = self._task, [], []
        with torch.no_grad(), global_seed(self._seed, "evaluate"):  # a task may draw noise
            for start in range(0, len(self._y), BATCH):
                interrupt.check()
                x, y = self._x[start : start + BATCH], self._y[start : start + BATCH]
                output = task.outputs(self._model.module, self._normalize(x), y)
                losses.append(task.loss(output, y))
                predicted.append(output.argmax(dim=-1))
        loss = torch.cat(losses).double().cpu()
        if not task.classifies:
            pictures = task.pictures(self._model.module) if self._comm.rank == 0 else {}
            return Score(None, float(loss.mean()), torch.zeros(0, 0, dtype=torch.float64), pictures=pictures)
        return self._tally(torch.cat(predicted).cpu(), loss)

    def _tally(self, predicted: Tensor, losses: Tensor) -> Score:
        y, num_classes = self._y.cpu(), self._task.num_classes
        confusion = (y * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)
        wrong = torch.where(predicted == y, -1.0, losses)
        worst = [i for i in wrong.argsort(descending=True)[:16].tolist() if wrong[i] >= 0]
        mistakes = tuple(Mistake(self._x[i].cpu(), int(y[i]), int(predicted[i]), float(losses[i])) for i in worst)
        right = int(confusion.diagonal().sum())
        return Score(right / len(y), float(losses.mean()), confusion.double(), mistakes)

    def _summed(self, score: Score) -> Score:
        own = len(self._y)
        buffer = torch.cat([score.confusion.view(-1), torch.tensor([own * score.loss, own], dtype=torch.float64)])
        self._comm.all_reduce(buffer, "evaluate")
        confusion, (loss, total) = buffer[:-2].view_as(score.confusion), buffer[-2:].tolist()
        accuracy = None if score.accuracy is None else float(confusion.diagonal().sum()) / total
        return replace(score, accuracy=accuracy, loss=loss / total, confusion=confusion)


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
