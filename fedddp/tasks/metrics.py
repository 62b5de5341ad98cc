"""Metrics as sums over examples: they add up over batches and ranks, and the metrics follow from the sums.

Each class here gives sums [S] of a batch, float64, and from their total the metrics by name, a NaN where the sums do
not determine one (no example of a class, say). In `LOWER` are the names of those of which less is better.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.targets import IGNORED

LOWER = frozenset({"loss", "mae", "rmse", "perplexity", "bits_per_character"})
"""Metrics of which less is better."""
FRACTIONS = frozenset({"accuracy", "balanced_accuracy", "f1", "top5_accuracy", "auroc"})
"""Metrics from 0 to 1, which tables show in percent."""
MOST_LABELS = 100
"""Above this number of classes there is no confusion matrix and no metric of each class: too large to read."""
BINS = 4096
"""Bins of the histogram of scores that AUROC is computed from."""


@dataclass(frozen=True)
class Target:
    """A value of a metric at which a run stops; ``value`` or more, or, of metrics in `LOWER`, or less."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "auroc>=0.95" or "perplexity<=9". Raises ValueError."""
        name, sign, number = re.fullmatch(r"\s*(\w*)\s*([<>]?=?)\s*(.*?)\s*", text, re.DOTALL).groups()  # pyright: ignore
        try:
            target = cls(name, float(number))
        except ValueError:
            target = cls("", math.nan)
        if not (target.metric and math.isfinite(target.value) and sign in ("<=", ">=")):
            raise ValueError("should be a metric, >= or <=, and a number, such as 'auroc>=0.95' or 'perplexity<=9'")
        if (sign == "<=") != (name in LOWER):
            raise ValueError(
                f"of {name} {'less' if name in LOWER else 'more'} is better: write {name}"
                f"{'<=' if name in LOWER else '>='}{number}"
            )
        return target

    @classmethod
    def asked(cls, accuracy: float | None, text: str | None) -> Self | None:
        """The target of the keys ``target_accuracy`` and ``target``, of which at most one is set."""
        return cls.parse(text) if text else None if accuracy is None else cls("accuracy", accuracy)

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.metric in LOWER else '>='}{self.value:g}"

    @property
    def key(self) -> str:
        """The metric's key in ``metrics.jsonl``."""
        return f"test_{self.metric}"

    def met(self, value: float | None) -> bool:
        """Whether ``value`` of the metric reaches the target; one that is not known does not."""
        return value is not None and (value <= self.value if self.metric in LOWER else value >= self.value)


class Sums(Protocol):
    """Sums over examples, and the metrics that follow from them."""

    @property
    def size(self) -> int:
        """S."""
        ...

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sums of a batch, [S] float64."""
        ...

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        """The metrics that ``total [S]`` determines."""
        ...


@dataclass(frozen=True)
class Confusion:
    """Counts by true class and prediction, [C, C]: accuracy, balanced accuracy (mean recall of the classes), macro F1.

    F1 of a class is 2 TP / (2 TP + FP + FN), 0 where nothing is of the class, as scikit-learn has it; its mean is over
    the classes that occur, as targets or as predictions.
    """

    classes: int

    @property
    def size(self) -> int:
        return self.classes**2

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y * self.classes + outputs.argmax(dim=-1)).bincount(minlength=self.size).double()

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        cells = total.view(self.classes, self.classes)
        right, true, guessed = cells.diagonal(), cells.sum(dim=1), cells.sum(dim=0)
        there, either = true > 0, true + guessed > 0
        return {
            "accuracy": _mean(right.sum(), true.sum()),
            "balanced_accuracy": float((right / true)[there].mean()),
            "f1": float((2 * right / (true + guessed))[either].mean()),
        }


@dataclass(frozen=True)
class TopK:
    """Whether the true class is among the k largest scores: ``accuracy`` for k = 1, else ``top5_accuracy``."""

    k: int

    @property
    def size(self) -> int:
        return 2

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        true = outputs.gather(-1, y.unsqueeze(-1))
        right = (~(outputs <= true)).sum(dim=-1) < self.k  # a NaN is never right; 5 times as fast as topk of 10 classes
        return torch.stack([right.double().sum(), torch.tensor(float(len(y)), device=y.device).double()])

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        return {"accuracy" if self.k == 1 else f"top{self.k}_accuracy": _mean(*total)}


@dataclass(frozen=True)
class Decisions:
    """Of L yes-or-no outputs (logits; yes above 0), counts [L, 4] of true and false positives and negatives.

    Accuracy is over all decisions. For L = 1, F1 and balanced accuracy are those of the yes; else F1 is the mean over
    labels (macro).
    """

    labels: int

    @property
    def size(self) -> int:
        return 4 * self.labels

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        yes, true = outputs > 0, y.reshape(outputs.shape) > 0
        counts = [(yes & true).sum(0), (yes & ~true).sum(0), (~yes & true).sum(0), (~yes & ~true).sum(0)]
        return torch.stack(counts, dim=1).double().flatten()

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        tp, fp, fn, tn = total.view(-1, 4).unbind(dim=1)
        f1 = (2 * tp / (2 * tp + fp + fn)).nan_to_num(0.0)
        figures = {"accuracy": _mean((tp + tn).sum(), total.sum()), "f1": float(f1.mean())}
        return figures | ({"balanced_accuracy": float((tp / (tp + fn) + tn / (tn + fp)) / 2)} if len(tp) == 1 else {})


@dataclass(frozen=True)
class Histogram:
    """AUROC of L outputs from histograms of their scores, [2, L, bins]: P(score of a yes > score of a no), ties half.

    A score s falls into one of `BINS` equal bins of s / (1 + |s|), finest around 0 and without an end; of very many
    labels into fewer. AUROC is the mean over the labels that have both; scores in one bin count as ties.
    """

    labels: int

    @property
    def bins(self) -> int:
        return max(2, min(BINS, 2**20 // self.labels))

    @property
    def size(self) -> int:
        return 2 * self.labels * self.bins

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        scores = outputs.double().nan_to_num(0.0).clamp(-1e300, 1e300)
        at = (((F.softsign(scores) + 1) / 2) * self.bins).long().clamp(0, self.bins - 1)
        label = torch.arange(self.labels, device=y.device) + self.labels * (y.reshape(outputs.shape) > 0).long()
        return (label * self.bins + at).flatten().bincount(minlength=self.size).double()

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        no, yes = total.view(2, self.labels, self.bins)
        below = no.cumsum(dim=1) - no
        wins, pairs = (yes * (below + no / 2)).sum(dim=1), yes.sum(dim=1) * no.sum(dim=1)
        return {"auroc": float((wins / pairs)[pairs > 0].mean())}


@dataclass(frozen=True)
class Errors:
    """Sums [d, 5] of 1, |e|, e^2, y and y^2 for e = prediction - y: MAE, RMSE, R2 = 1 - sum e^2 / sum (y - mean y)^2.

    ``shift`` and ``scale`` [d]: outputs o are predictions o scale + shift. y is taken from ``shift``, in units of
    ``scale``, for the sums of squares; each metric is the mean over the d numbers.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def size(self) -> int:
        return 5 * len(self.shift)

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        shift, scale = (torch.tensor(v, dtype=torch.float64, device=y.device) for v in (self.shift, self.scale))
        truth = (y.double() - shift) / scale
        error = outputs.double() - truth
        return torch.stack([torch.ones_like(error), error.abs(), error**2, truth, truth**2], dim=2).sum(0).flatten()

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        n, absolute, squared, first, second = total.view(-1, 5).unbind(dim=1)
        scale = torch.tensor(self.scale, dtype=torch.float64)
        r2 = 1 - squared / (second - first**2 / n)
        mae, rmse = scale * absolute / n, scale * (squared / n).sqrt()
        return {"r2": float(r2.mean()), "mae": float(mae.mean()), "rmse": float(rmse.mean())}


class Positions:
    """Sums over positions that count (y is not `IGNORED`) of -log p(y), of right answers, of 1.

    Perplexity is exp of the mean of -log p(y), bits per character that mean in bits.
    """

    size = 3

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        flat, target = outputs.flatten(0, -2), y.flatten()
        nll = F.cross_entropy(flat, target, reduction="sum", ignore_index=IGNORED)
        counted = target != IGNORED
        right = (flat.argmax(dim=-1) == target) & counted
        return torch.stack([nll.double(), right.sum().double(), counted.sum().double()])

    def metrics(self, total: Tensor) -> Mapping[str, float]:
        nll = _mean(total[0], total[2])
        figures = {"perplexity": math.exp(min(nll, 700)), "accuracy": _mean(total[1], total[2])}
        return figures | {"bits_per_character": nll / math.log(2)}


def of_batch(parts: Iterable[Sums], outputs: Tensor, y: Tensor) -> Tensor:
    """The sums of all ``parts`` side by side, on the CPU."""
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(part.of(outputs, y).cpu() for part in parts)])


def metrics_of(parts: Iterable[Sums], total: Tensor) -> dict[str, float | None]:
    """The metrics of all ``parts`` from their sums side by side; None for one that is not determined."""
    found, at = dict[str, float | None](), 0
    for part in parts:
        for name, value in part.metrics(total[at : at + part.size]).items():
            found[name] = value if math.isfinite(value) else None
        at += part.size
    return found


def _mean(total: Tensor, count: Tensor) -> float:
    return float(total / count)
