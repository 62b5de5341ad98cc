"""Sums of clipped per-example gradients: the interface, the clipping, and the way that fits any model.

The gradient of example b of client k at that client's weights, g_kb, is scaled to norm C at most, and the client's are
added up:  sum_b g_kb min(1, C / |g_kb|)  (Abadi et al. 2016, Algorithm 1, "clip gradient"). The norm is that of all
trainable parameters together.

Letters: K clients, B examples of each, P trainable parameters.
"""

from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...flat import FlatSpec, frozen_parts
from ...tasks import Task
from ..local import arithmetic
from ..vectorized import unwarned

NUMBERS_AT_ONCE = {"cpu": 2**24, "cuda": 2**28}
"""Of per-example gradients and activations held together: 64 MB in float32 stay near a CPU's cores; 1 GB on a GPU."""

MARGIN = 64
"""Units in the last place by which clipping aims below C, so that rounding (below 10 of them, measured) stays there."""


class ClippedSums(Protocol):
    """Sums of clipped per-example gradients of K clients at once, written down for others."""

    @property
    def spec(self) -> FlatSpec: ...

    def collect(self, w: Tensor, g: Tensor) -> None:
        """From now on, write the sums at the rows of ``w [K, D]`` to ``g [K, P]``."""
        ...

    def step(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:
        """The sums of the first A clients; what each example's norm was before clipping, float64 [A, B].

        ``x [A, B, ...]``, ``y [A, B]``, ``mask [A, B]``: false pads, which adds nothing. Nor does an example whose
        norm is not finite: infinite or NaN, or beyond what the model's precision can square.
        """
        ...


class VmappedExamples:
    """Any model without batch statistics, by `torch.func.vmap` over clients and over their examples.

    Each example goes through ``module`` as a batch of one: what others are drawn has no say in its gradient, whatever
    the module does. The gradients are there one by one, [K, B, P], some examples at a time.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu", autocast: bool = False) -> None:
        """Raises ValueError for a model with batch statistics."""
        refuse_mixing(module)
        self.spec = FlatSpec.of(module)
        self._module = module.to(device).train()
        self._arithmetic = arithmetic(device, autocast)
        self._trainable = [name for name, p in module.named_parameters() if p.requires_grad]
        self._at_once = NUMBERS_AT_ONCE[torch.device(device).type] // (2 * self.spec.num_trainable)
        trained = zip(self.spec.names, self.spec.shapes, strict=True)
        self._sizes = [prod(shape) for name, shape in trained if name in self._trainable]

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `ClippedSums.collect`."""
        self._views, self._sums = self.spec.views(w), g

    def step(self, task: Task, x: Tensor, y: Tensor, mask: Tensor, clip: float) -> Tensor:
        """See `ClippedSums.step`."""
        sums = self._sums[: len(x)].zero_().split(self._sizes, dim=1)  # [K, numbers of the layer] each
        parts = zip(*(part.split(max(1, self._at_once // len(x)), dim=1) for part in (x, y, mask)), strict=True)
        norms = []
        for inputs, labels, drawn in parts:
            each = list(self.gradients(task, inputs, labels).values())
            norm = torch.stack([squared_norm(gradient) for gradient in each]).sum(dim=0).sqrt()
            norms.append(norm)
            factor, good = clipping(norm, drawn, clip, self.spec.dtype)
            for into, gradient in zip(sums, each, strict=True):
                into += torch.bmm(factor.unsqueeze(1), without(gradient, good).reshape(*factor.shape, -1)).squeeze(1)
        return torch.cat(norms, dim=1)

    def gradients(self, task: Task, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The gradient of each example by name, [K, B, *shape]; ``x [K, B, ...]``."""

        def loss(trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            with self._arithmetic, sdpa_kernel(SDPBackend.MATH):  # of attention, the one that vmap has rules for
                outputs = functional_call(self._module, {**trained, **fixed}, (x.unsqueeze(0),))
            return task.loss(outputs.to(self.spec.dtype), y.unsqueeze(0)).squeeze(0)

        fixed = {name: view[: len(x)] for name, view in self._views.items()}
        trained = {name: fixed.pop(name) for name in self._trainable}
        one_client = vmap(grad(loss), in_dims=(None, None, 0, 0))
        with unwarned():
            return vmap(one_client)(trained, fixed, x, y)


class OneByOneExamples(VmappedExamples):
    """Any model without batch statistics, by a backward pass for each example: for what `torch.func.vmap` refuses."""

    def gradients(self, task: Task, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `VmappedExamples.gradients`."""
        found: list[tuple[Tensor, ...]] = []
        for k in range(len(x)):
            views = {name: view[k].detach() for name, view in self._views.items()}
            leaves = [views[name].requires_grad_() for name in self._trainable]
            for example, target in zip(x[k].split(1), y[k].split(1), strict=True):
                with self._arithmetic:
                    outputs = functional_call(self._module, views, (example,))
                loss = task.loss(outputs.to(self.spec.dtype), target).sum()
                found.append(torch.autograd.grad(loss, leaves, materialize_grads=True))
        each = zip(self._trainable, zip(*found, strict=True), strict=True)
        return {name: torch.stack(parts).unflatten(0, y.shape[:2]) for name, parts in each}


def mixing_layers(module: nn.Module) -> list[str]:
    """Return the layers in which examples of a batch affect each other, or that keep their statistics: name (class).

    Layers of frozen parts do neither: their statistics are constants.
    """
    constant = {id(part) for frozen in frozen_parts(module) for part in frozen.modules()}

    def mixes(part: nn.Module) -> bool:
        keeps = isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
        return id(part) not in constant and (keeps or isinstance(part, nn.modules.batchnorm._BatchNorm))

    return [f"{name} ({type(part).__name__})" for name, part in module.named_modules() if mixes(part)]


def refuse_mixing(module: nn.Module) -> None:
    """Raise ValueError for a module with `mixing_layers`."""
    if layers := mixing_layers(module):
        raise ValueError(
            f"{layers[0]} computes with statistics of a batch: no example has a gradient of its own to clip, and the "
            "statistics leave without noise; use GroupNorm or LayerNorm"
        )


def squared_norm(gradient: Tensor) -> Tensor:
    """Of [K, B, *shape], float64 [K, B]. A layer's rows first: over millions at once float32 loses half its digits."""
    if gradient.dim() < 4:
        return gradient.reshape(*gradient.shape[:2], -1).double().square().sum(dim=2)
    return torch.linalg.vector_norm(gradient.flatten(3), dim=3).double().square_().sum(dim=2)


def clipping(norm: Tensor, mask: Tensor, clip: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """From norms [K, B]: min(1, C / norm), 0 for padding and what is not finite; and which are finite."""
    good = norm.isfinite()
    largest = clip * (1 - MARGIN * torch.finfo(dtype).eps)
    factor = largest / norm.clamp(min=largest)
    return torch.where(good & mask, factor, 0.0).to(dtype), good


def without(rows: Tensor, good: Tensor) -> Tensor:
    """``rows [K, B, ...]`` with zeros where an example is not ``good [K, B]``: a factor of 0 leaves NaN what it is."""
    if good.all():
        return rows
    return rows.masked_fill(~good.view(*good.shape, *[1] * (rows.dim() - 2)), 0)
