"""Clipped sums without per-example gradients, for models of linear and convolution layers: about one plain backward.

A layer whose weight acts on rows x_t [T, in] (T positions of a convolution's patches, T = 1 for most linear layers) has
the per-example gradient sum_t dy_t x_t^T. Its norm needs the gradient itself only where that is the cheaper way:

    T = 1:   |dy| |x|                                      (Goodfellow 2015, arXiv 1510.01799)
    else:    < x x^T , dy dy^T >  or the gradient itself    (Li et al. 2022, arXiv 2110.05679, "ghost clipping";
                                                            Bu et al. 2022, arXiv 2205.10683, which of the two)

and the clipped sum is one product of all rows, sum_bt (c_b dy_bt) x_bt^T. Inputs and output gradients of all layers are
kept from one backward pass until the norms are known ("book-keeping": Bu et al. 2023, arXiv 2210.00038).

Letters: K clients, B examples of each, T rows of an example, i inputs and o outputs of a layer.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...tasks import Task
from ..folded import FoldedModel
from ..folded.convolution import FoldedConv2d
from ..folded.layer import FoldedLayer, FoldedLinear
from .oracle import NUMBERS_AT_ONCE, clipping, refuse_mixing, squared_norm, without


class Captured:
    """The inputs and output gradients of a layer's weight, ``x [K, B, T, i]`` and ``dy [K, B, T, o]``."""

    def __init__(self, x: Tensor, dy: Tensor, biased: bool) -> None:
        self.x, self.dy = x, dy
        self.bias = dy.sum(dim=2) if biased else None  # [K, B, o]
        rows, (i, o) = x.shape[2], (x.shape[3], dy.shape[3])
        self.each: Tensor | None = None  # [K, B, o, i]
        if rows * (i + o) > i * o:
            self.each = torch.matmul(dy.mT, x)

    @property
    def numbers(self) -> int:
        """Held in memory."""
        return self.x.numel() + self.dy.numel() + (self.each.numel() if self.each is not None else 0)

    def squared_norms(self) -> Tensor:
        """Of the weight's and the bias's gradients together, float64 [K, B]."""
        biases = squared_norm(self.bias) if self.bias is not None else 0.0
        if self.each is not None:
            return squared_norm(self.each) + biases
        if self.x.shape[2] == 1:
            return squared_norm(self.x.squeeze(2)) * squared_norm(self.dy.squeeze(2)) + biases
        alike = torch.matmul(self.x, self.x.mT).double() * torch.matmul(self.dy, self.dy.mT).double()
        return alike.sum(dim=(2, 3)).clamp_(min=0) + biases  # rounding may go below an exact 0

    def add_to(self, weight: Tensor, bias: Tensor | None, factor: Tensor, good: Tensor) -> None:
        """Add the sum with ``factor [K, B]`` to ``weight``, [K, o, i] or what flattens to it, and ``bias [K, o]``."""
        if self.each is not None:
            weight += torch.bmm(factor.unsqueeze(1), without(self.each, good).flatten(2)).view_as(weight)
        else:
            dy = without(self.dy, good) * factor.view(*factor.shape, 1, 1)
            rows = dy.flatten(1, 2).mT, without(self.x, good).flatten(1, 2)
            if weight.dim() == 3:
                weight.baddbmm_(*rows)
            else:
                weight += torch.bmm(*rows).view_as(weight)
        if bias is not None and self.bias is not None:
            bias += torch.bmm(factor.unsqueeze(1), without(self.bias, good)).squeeze(1)


class CapturingLinear(FoldedLinear):
    """Captures its inputs and output gradients instead of learning from them."""

    captured: tuple[Tensor, Tensor]  # x [K, B T, i] and dy [K, B T, o]

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """``x [K, B T, in]``, ``dy [K, B T, out]``."""
        self.captured = x, dy

    def into(self, grad: Tensor) -> Tensor:
        """The gradient's place ``grad [K, *shape]`` as the rows are: [K, out, in]."""
        return grad


class CapturingConv2d(FoldedConv2d):
    """The same; its rows are patches in the order (kh, kw, C)."""

    captured: tuple[Tensor, Tensor]

    def learn_from(self, x: Tensor | None, patches: Tensor | None, dy: Tensor, back: bool) -> Tensor | None:
        """See `FoldedConv2d.learn_from`."""
        if patches is None:
            assert x is not None
            patches = self.patches(x)[0]
        self.captured = patches, self.rows(dy)
        return self.gradients(x, dy, (True, False))[0] if x is not None and back else None

    def into(self, grad: Tensor) -> Tensor:
        """``grad [K, O, C, kh, kw]`` as a view [K, O, kh, kw, C]."""
        return grad.permute(0, 1, 3, 4, 2)


class GhostExamples(FoldedModel):
    """`ClippedSums` of a model of linear layers and convolutions. Raises ValueError for others (see `FoldedModel`)."""

    kinds: ClassVar[Mapping[type[nn.Module], type[FoldedLayer]]] = {
        nn.Linear: CapturingLinear,
        nn.Conv2d: CapturingConv2d,
    }

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        refuse_mixing(module)
        super().__init__(module, device, layout)
        self._budget, self._numbers = NUMBERS_AT_ONCE[torch.device(device).type], 0

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `ClippedSums.collect`."""
        self._attach(w)
        self._sums = g

    def step(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `ClippedSums.step`."""
        self._sums[: len(x)] = 0
        if not self._numbers:  # how many an example takes: the layers know when they have seen one
            self._numbers = sum(captured.numbers for captured in self._pass(task, x[:1, :1], y[:1, :1]))
        at_once = max(1, self._budget // (2 * self._numbers * len(x)))
        parts = zip(*(part.split(at_once, dim=1) for part in (x, y, mask)), strict=True)
        return torch.cat([self._add(task, some, labels, drawn, clip) for some, labels, drawn in parts], dim=1)

    def _add(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:
        """Add some examples of each client to the sums; their norms."""
        captured = self._pass(task, x, y)
        with torch.no_grad():
            norm = torch.stack([layer.squared_norms() for layer in captured]).sum(dim=0).sqrt()
            factor, good = clipping(norm, mask, clip, self._sums.dtype)
            into = self.spec.views(self._sums[: len(x)])
            for layer, seen in zip(self._layers, captured, strict=True):
                assert isinstance(layer, CapturingLinear | CapturingConv2d)
                seen.add_to(layer.into(into[f"{layer.name}weight"]), into.get(f"{layer.name}bias"), factor, good)
        return norm

    def _pass(self, task: Task, x: Tensor, y: Tensor) -> list[Captured]:
        """Forwards and backwards: what each layer captured."""
        outputs = self.forward(x)
        task.loss(outputs.flatten(0, 1), y.flatten()).sum().backward()
        captured = []
        for layer in self._layers:
            assert isinstance(layer, CapturingLinear | CapturingConv2d)
            a, dy = (rows.unflatten(1, (x.shape[1], -1)) for rows in layer.captured)
            del layer.captured
            captured.append(Captured(a, dy, layer.bias is not None))
        return captured
