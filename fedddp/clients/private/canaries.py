"""Examples whose gradients are canaries, to audit DP-SGD: drawn, clipped, summed and noised as any other's.

A canary's gradient is long and lies along one coordinate of the model ("Dirac canary": Nasr et al. 2023, "Tight
auditing of differentially private machine learning"), so that canaries do not see each other. The label of an example
is the number of its canary's coordinate among ``coordinates``; one below 0 has no gradient. No example goes through the
model.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...tasks import Task
from ...types import LocalResult
from ..local import Correction, Local
from .captured import Captured, Rows
from .ghost import GhostExamples
from .oracle import OneByOneExamples, VmappedExamples
from .trainer import PrivateTrainer, private_steps, sampling_rate

BEYOND = 1e6
"""Length of a canary's gradient in units of the clip. A bias that comes along adds 1e-6 of it."""


class DiracExamples(VmappedExamples):
    """`VmappedExamples` whose examples are canaries of length ``size``."""

    size = 0.0

    def __init__(self, of: VmappedExamples) -> None:
        vars(self).update(vars(of))
        self.coordinates = torch.arange(self.spec.num_trainable)

    def gradients(self, task: Task, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `VmappedExamples.gradients`."""
        flat = torch.zeros(*y.shape, self.spec.dim, dtype=self.spec.dtype, device=y.device)
        flat.scatter_(2, y.clamp(min=0).unsqueeze(2), self.size * (y >= 0).to(flat).unsqueeze(2))
        views = self.spec.views(flat)
        return {name: views[name] for name in self._trainable}


class DiracGhosts(GhostExamples):
    """`GhostExamples` whose examples are canaries of length ``size``: a single entry of dy x^T in the largest layer."""

    size = 0.0

    def __init__(self, of: GhostExamples) -> None:
        vars(self).update(vars(of))
        places = self.spec.views(torch.arange(self.spec.dim).unsqueeze(0))
        rows = {name: into(places[name])[0].flatten(1) for name, into in self._matrices.items()}  # [o, i] each
        self._largest = max(rows, key=lambda name: rows[name].numel())
        self._shape, self.coordinates = rows[self._largest].shape, rows[self._largest].flatten()

    def _pass(self, task: Task, x: Tensor, y: Tensor) -> list[Captured]:
        """See `GhostExamples._pass`."""
        o, i = self._shape
        there = (y >= 0).to(self.spec.dtype).unsqueeze(2)
        a, dy = there.new_zeros(*y.shape, i), there.new_zeros(*y.shape, o)
        a.scatter_(2, (y.clamp(min=0) % i).unsqueeze(2), self.size * there)
        dy.scatter_(2, (y.clamp(min=0) // i % o).unsqueeze(2), there)
        path, dot, own = self._largest.rpartition(".")
        bias = path + dot + own.replace("weight", "bias")
        names = self._largest, bias if bias in self.spec.names else None
        return [Rows(a.unsqueeze(2), dy.unsqueeze(2), names, self._matrices[self._largest])]


DIRAC: dict[type, Callable[..., DiracExamples | DiracGhosts]] = {
    VmappedExamples: DiracExamples,
    OneByOneExamples: DiracExamples,
    GhostExamples: DiracGhosts,
}
"""From an oracle to one with its model and memory whose examples are canaries."""


class CanaryTrainer(PrivateTrainer):
    """``of``, some of whose clients own canaries and nothing else; the others do not train.

    From step to step and from round to round a canary changes its sign, so that noise that is used twice cancels while
    the canary adds up.

    Attributes:
        coordinates: where canaries can lie.
    """

    def __init__(self, of: PrivateTrainer) -> None:
        vars(self).update(vars(of))
        self.oracle = self._dirac = DIRAC[type(of.oracle)](of.oracle)
        self.coordinates = self._dirac.coordinates

    def plant(self, canaries: Mapping[int, tuple[Tensor, Tensor]], see: Callable[[int, Tensor], None]) -> None:
        """Give clients their canaries.

        Args:
            canaries: by client, the numbers of its first examples' coordinates, [m_k], and which of these examples
                take part, bool [m_k].
            see: receives a client, and the component of a step's noisy sum along each of its canaries, in units of the
                clip and times the canary's sign, [m_k].
        """
        self._see, self._labels = see, {k: torch.full((int(self.data.sizes[k]),), -1) for k in canaries}
        for k, (numbers, included) in canaries.items():
            self._labels[k][: len(numbers)] = torch.where(included, numbers, -1)
        self._at = {k: self.coordinates[numbers] for k, (numbers, _) in canaries.items()}

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""
        sizes, work, step = local.num_examples.tolist(), self._training.work, 0
        if not self._at.keys() & {*local.ids}:
            nan = torch.full((len(sizes),), torch.nan, dtype=torch.float64)
            still = start.new_zeros(len(sizes), start.shape[-1])
            return LocalResult(start, still, torch.ones(len(sizes), dtype=torch.long), nan, nan)
        steps = [private_steps(n, work.epochs, work.batch_size) for n in sizes]
        sign = self._turned(1 - 2 * (local.round % 2))

        def seen(g: Tensor, w: Tensor) -> Tensor:
            nonlocal step, sign
            for row, (k, n) in enumerate(zip(local.ids, sizes, strict=True)):
                if step < steps[row] and k in self._at:
                    expected = sampling_rate(n, work.batch_size) * n
                    self._see(k, g[row].cpu().double()[self._at[k]] * (sign * expected / self._clip))
            step, sign = step + 1, self._turned(-sign)
            return correct(g, w) if correct else g

        return super().train(local, start, seen)

    def _turned(self, sign: int) -> int:
        self._dirac.size = sign * BEYOND * self._clip
        return sign

    def _gather(self, ids: Sequence[int], index: Tensor) -> tuple[Tensor, Tensor]:
        """The drawn examples, [K, B, ...], with their canaries' numbers as labels, -1 without one."""
        x, y = super()._gather(ids, index)
        none = torch.full(index.shape[1:], -1)
        labels = [self._labels[k][row] if k in self._labels else none for k, row in zip(ids, index, strict=True)]
        return x, torch.stack(labels).to(y.device)
