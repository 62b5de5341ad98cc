"""Clipped sums without per-example gradients, for models of layers that fold: about one plain backward.

A layer whose weight acts on rows x_t [T, in] (T positions of a convolution's patches or steps of a recurrent layer,
T = 1 for most linear layers) has the per-example gradient sum_t dy_t x_t^T. Its norm needs the gradient itself only
where that is the cheaper way:

    T = 1:   |dy| |x|                                      (Goodfellow 2015, arXiv 1510.01799)
    else:    < x x^T , dy dy^T >  or the gradient itself    (Li et al. 2022, arXiv 2110.05679, "ghost clipping";
                                                            Bu et al. 2022, arXiv 2205.10683, which of the two)

and the clipped sum is one product of all rows, sum_bt (c_b dy_bt) x_bt^T. An embedding's rows are 1 at an id and 0
elsewhere; of scales and shifts the gradients are small. Inputs and output gradients of all layers are kept from one
backward pass until the norms are known ("book-keeping": Bu et al. 2023, arXiv 2210.00038).

Letters: K clients, B examples of each.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...tasks import Task
from ..folded import FoldedModel
from ..folded.layer import FoldedLayer
from .captured import Captured
from .capturing import CAPTURING, Capturing
from .oracle import NUMBERS_AT_ONCE, clipping, refuse_mixing


class GhostExamples(FoldedModel):
    """`ClippedSums` of a model that folds. Raises ValueError for others (see `FoldedModel`), or without a matrix."""

    kinds: ClassVar[Mapping[type[nn.Module], type[FoldedLayer]]] = CAPTURING

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        refuse_mixing(module)
        super().__init__(module, device, layout)
        self._capturing = [layer for layer in self._layers if isinstance(layer, Capturing)]
        self._matrices = {name: into for layer in self._capturing for name, into in layer.matrices().items()}
        if not self._matrices:
            raise ValueError("no layer of the model has a matrix")
        self._budget, self._numbers = NUMBERS_AT_ONCE[torch.device(device).type], 0

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `ClippedSums.collect`."""
        self._attach(w)
        self._sums = g

    def step(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `ClippedSums.step`."""
        self._sums[: len(x)] = 0
        if not self._numbers:  # how many an example takes: the layers know when they have seen one
            self._numbers = sum(piece.numbers for piece in self._pass(task, x[:1, :1], y[:1, :1]))
        at_once = max(1, self._budget // (2 * self._numbers * len(x)))
        parts = zip(*(part.split(at_once, dim=1) for part in (x, y, mask)), strict=True)
        return torch.cat([self._add(task, some, labels, drawn, clip) for some, labels, drawn in parts], dim=1)

    def _add(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:
        """Add some examples of each client to the sums; their norms."""
        captured = self._pass(task, x, y)
        with torch.no_grad():
            norm = torch.stack([piece.squared_norms() for piece in captured]).sum(dim=0).sqrt()
            factor, good = clipping(norm, mask, clip, self._sums.dtype)
            into = self.spec.views(self._sums[: len(x)])
            for piece in captured:
                piece.add_to(into, factor, good)
        return norm

    def _pass(self, task: Task, x: Tensor, y: Tensor) -> list[Captured]:
        """Forwards and backwards: what the layers captured."""
        outputs = self.forward(x)
        task.loss(outputs.flatten(0, 1), y.flatten(0, 1)).sum().backward()
        return [piece for layer in self._capturing for piece in layer.captured(x.shape[1])]
