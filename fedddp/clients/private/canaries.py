"""Examples whose gradients are canaries, to audit DP-SGD: drawn, clipped, summed and noised as any other's.

A canary's gradient is long and lies along one coordinate of the model ("Dirac canary": Nasr et al. 2023, "Tight
auditing of differentially private machine learning"), so that canaries do not see each other. The label of an example
stands for its coordinate; a label below 0 is an example without gradient. No example goes through the model.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...tasks import Task
from ...types import LocalResult
from ..local import Correction, Local
from .ghost import Captured, CapturingConv2d, CapturingLinear, GhostExamples
from .oracle import ClippedSums, VmappedExamples
from .trainer import PrivateTrainer, private_steps, sampling_rate

BEYOND = 1e6
"""Length of a canary's gradient in units of the clip. A bias that comes along adds 1e-6 of it."""


class DiracExamples(VmappedExamples):
    """`VmappedExamples` with gradients along the coordinates that the labels name."""

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
    """`GhostExamples` with gradients along the weights that the labels name: dy x^T with a single entry each."""

    size = 0.0

    def __init__(self, of: GhostExamples) -> None:
        vars(self).update(vars(of))
        places = self.spec.views(torch.arange(self.spec.dim).unsqueeze(0))
        shaped = [self._rows(layer, places[f"{layer.name}weight"]) for layer in self._layers]  # [o, i] each
        self.coordinates = torch.cat([index.flatten() for index in shaped]).sort().values
        self._at = torch.zeros(3, self.spec.dim, dtype=torch.long)  # layer, output and input of each weight
        for n, index in enumerate(shaped):
            o, i = (part.flatten() for part in torch.meshgrid(*map(torch.arange, index.shape), indexing="ij"))
            self._at[:, index.flatten()] = torch.stack([torch.full_like(o, n), o, i])
        self._shapes = [index.shape for index in shaped]

    @staticmethod
    def _rows(layer: torch.nn.Module, weight: Tensor) -> Tensor:
        """``weight [1, *shape]`` as the layer's rows are, [o, i]."""
        assert isinstance(layer, CapturingLinear | CapturingConv2d)
        return layer.into(weight)[0].flatten(1)

    def _pass(self, task: Task, x: Tensor, y: Tensor) -> list[Captured]:
        """See `GhostExamples._pass`."""
        layers, outputs, inputs = self._at.to(y.device)[:, y.clamp(min=0)].unsqueeze(3)  # [K, B, 1] each
        captured = []
        for n, (layer, (o, i)) in enumerate(zip(self._layers, self._shapes, strict=True)):
            mine = ((layers == n) & (y >= 0).unsqueeze(2)).to(self.spec.dtype)
            a, dy = mine.new_zeros(*y.shape, 1, i), mine.new_zeros(*y.shape, 1, o)
            a[..., 0, :].scatter_(2, inputs.clamp(max=i - 1), self.size * mine)
            dy[..., 0, :].scatter_(2, outputs.clamp(max=o - 1), mine)
            captured.append(Captured(a, dy, layer.bias is not None))
        return captured


DIRAC: dict[type, Callable[..., "DiracExamples | DiracGhosts"]] = {
    VmappedExamples: DiracExamples,
    GhostExamples: DiracGhosts,
}


def dirac(oracle: ClippedSums) -> DiracExamples | DiracGhosts:
    """Return an oracle like ``oracle``, with its model and memory, whose examples are canaries."""
    return DIRAC[type(oracle)](oracle)


class CanaryTrainer(PrivateTrainer):
    """``of``, some of whose clients own canaries and nothing else; the others do not train.

    From step to step and from round to round a canary changes its sign, so that noise that is used twice cancels while
    the canary adds up.

    Attributes:
        coordinates: where canaries can lie.
    """

    def __init__(self, of: PrivateTrainer) -> None:
        vars(self).update(vars(of))
        self.oracle = self._dirac = dirac(of.oracle)
        self.coordinates = self._dirac.coordinates

    def plant(self, canaries: Mapping[int, tuple[Tensor, Tensor]], see: Callable[[int, Tensor], None]) -> None:
        """Give clients their canaries.

        Args:
            canaries: by client, the coordinates of its first examples, [m_k], and which of them take part, bool [m_k].
            see: receives a client, and the component of a step's noisy sum along each of its canaries, in units of the
                clip and times the canary's sign, [m_k].
        """
        self._planted, self._see = {k: at for k, (at, _) in canaries.items()}, see
        self._labels = {k: torch.full((int(self.data.sizes[k]),), -1) for k in canaries}
        for k, (at, included) in canaries.items():
            self._labels[k][: len(at)] = torch.where(included, at, -1)

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""
        sizes, work, step = local.num_examples.tolist(), self._training.work, 0
        if not self._planted.keys() & {*local.ids}:
            nan = torch.full((len(sizes),), torch.nan, dtype=torch.float64)
            still = start.new_zeros(len(sizes), start.shape[-1])
            return LocalResult(start, still, torch.ones(len(sizes), dtype=torch.long), nan, nan)
        steps = [private_steps(n, work.epochs, work.batch_size) for n in sizes]

        def signed() -> int:
            return 1 - 2 * ((step + local.round) % 2)

        def seen(g: Tensor, w: Tensor) -> Tensor:
            nonlocal step
            for row, (k, n) in enumerate(zip(local.ids, sizes, strict=True)):
                if step < steps[row] and k in self._planted:
                    expected = sampling_rate(n, work.batch_size) * n
                    along = g[row].cpu().double()[self._planted[k]]
                    self._see(k, along * (signed() * expected / self._clip))
            step += 1
            self._dirac.size = signed() * BEYOND * self._clip
            return correct(g, w) if correct else g

        self._dirac.size = signed() * BEYOND * self._clip
        return super().train(local, start, seen)

    def _gather(self, ids: Sequence[int], index: Tensor) -> tuple[Tensor, Tensor]:
        """The drawn examples, [K, B, ...], with the coordinates of their canaries as labels, -1 without one."""
        x, y = super()._gather(ids, index)
        rows = [
            self._labels[k][row] if k in self._labels else torch.full_like(row, -1)
            for k, row in zip(ids, index, strict=True)
        ]
        return x, torch.stack(rows).to(y.device)
