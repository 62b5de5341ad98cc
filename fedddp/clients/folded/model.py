"""A model of K clients at once: the user's own module with its layers exchanged for folded ones."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...flat import FlatSpec, frozen_parts
from ...models.residual import Residual
from ...tasks import Task
from .convolution import FoldedConv2d
from .embedding import FoldedEmbedding
from .layer import FoldedLayer, FoldedLinear
from .norm import FoldedGroupNorm, FoldedLayerNorm, FoldedRMSNorm
from .recurrent import FoldedGRU, FoldedLSTM
from .residual import FoldedResidual

KINDS: dict[type[nn.Module], type[FoldedLayer]] = {
    nn.Linear: FoldedLinear,
    nn.Conv2d: FoldedConv2d,
    nn.Embedding: FoldedEmbedding,
    nn.LayerNorm: FoldedLayerNorm,
    nn.RMSNorm: FoldedRMSNorm,
    nn.GroupNorm: FoldedGroupNorm,
    nn.LSTM: FoldedLSTM,
    nn.GRU: FoldedGRU,
    Residual: FoldedResidual,
}
"""What stands for a layer of exactly that class."""


class FoldedModel:
    """``module`` for K clients: it sees one batch of K B examples, client after client.

    Whatever has no parameters (activations, pooling, reshaping, a forward of one's own) acts on each example alone and
    need not know of clients; nor need frozen layers, which run once on all K B examples. Raises ValueError for a model
    with trainable parameters or changing buffers outside of the plain layers of `KINDS`, shared ones, or layers frozen
    in part. That nothing else mixes examples cannot be seen: `choose` tries it out.
    """

    kinds: ClassVar[Mapping[type[nn.Module], type[FoldedLayer]]] = KINDS

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.spec = FlatSpec.of(module)
        self._layers: list[FoldedLayer] = []
        self._layout, self._tried = layout, False
        covered: set[str] = set()
        self.module = self._exchange(module.to(device), "", covered)
        left = [name for name in self.spec.names if name not in covered]
        left += sorted(covered.difference(self.spec.names))  # one parameter in two layers
        left += [name for name, p in self.module.named_parameters() if p.requires_grad]  # one layer in two places
        if left:
            raise ValueError(f"{left[0]} is not of one layer alone, of a plain kind that folds")
        self.module.train()

    def load(self, w: Tensor) -> None:
        """Be the model of one client, ``w [D]``, for ``module`` to be called on plain batches."""
        self._attach(w.unsqueeze(0))

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `Oracle.collect`."""
        self._attach(w, g)

    def begin(self, start: Tensor, rows: Tensor, lr: float, seen: int) -> None:
        """See `Descending.begin`."""
        self._attach(rows)
        self._start = self.spec.views(start)
        for layer in self._layers:
            layer.begin(self._start, lr, seen)

    def finish(self) -> None:
        """See `Descending.finish`."""
        self._attach(self._w)
        for layer in self._layers:
            layer.finish(self._start)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [K, B, ...] for ``x [K, B, ...]``, of the first K clients attached."""
        if not self._tried:
            self._try(x[0, :1])
        if len(x) != self._clients:
            self._narrow(len(x))
        return self._run(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def step(self, task: Task, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of K clients, learned from in the backward pass; outputs [K, B, C] and losses [K, B]."""
        outputs = self.forward(x)
        losses = task.loss(outputs.flatten(0, 1), y.flatten(0, 1))
        (losses * share.flatten()).sum().backward()  # a gradient as argument would make torch import sympy: 1 s
        return outputs.detach(), losses.detach().view_as(share)

    def _run(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            layer.arm(len(x))
        outputs = self.module(x)
        for layer in self._layers:
            layer.forwarded()
        return outputs

    def _try(self, x: Tensor) -> None:
        """Show copies of the example ``x [1, ...]`` to layers that need to know what depends on their number."""
        self._tried = True
        tried = [layer for layer in self._layers if layer.tried]
        if tried:
            self._narrow(1)
            for copies in (2, 3):
                with torch.no_grad():
                    self._run(x.expand(copies, *x.shape[1:]))
                for layer in tried:
                    layer.was_tried()

    def _attach(self, w: Tensor, g: Tensor | None = None) -> None:
        self._w, self._g = w, g
        self._narrow(len(w))

    def _narrow(self, clients: int) -> None:
        """The first ``clients`` rows only."""
        self._clients, views = clients, self.spec.views(self._w[:clients])
        for layer in self._layers:
            layer.attach(views)
            if self._g is not None:
                layer.collect(self.spec.views(self._g[:clients]))

    def _exchange(self, module: nn.Module, path: str, covered: set[str]) -> nn.Module:
        """``module`` with every plain layer below it replaced; adds their parameters to ``covered``."""
        if frozen_parts(module) == [module]:
            return module
        kind = self.kinds.get(type(module))
        if kind is not None and kind.stands_for(module) and not any(_hooked(part) for part in module.modules()):
            folded = kind(path, module)
            folded.layout = self._layout
            self._layers.append(folded)
            covered.update(path + name for name in folded.names)
            return folded
        for name, child in list(module.named_children()):
            setattr(module, name, self._exchange(child, f"{path}{name}.", covered))
        if type(module) is nn.Sequential and not any(_hooked(part) for part in module.modules()):
            return _streamlined(module)
        return module


def _hooked(module: nn.Module) -> bool:
    """Whether something looks on, or interferes, when ``module`` is used."""
    hooks: list[Any] = [module._forward_hooks, module._forward_pre_hooks]
    hooks += [module._backward_hooks, module._backward_pre_hooks]
    return any(hooks) or any(p._backward_hooks for p in module.parameters(recurse=False))


def _streamlined(chain: nn.Sequential) -> nn.Sequential:
    """The same function with less memory traffic: ReLU after max-pooling, on a quarter of the numbers, and in place.

    max(relu(a), relu(b)) = relu(max(a, b)), and the gradient takes the same way. A folded layer keeps no output, so
    what follows it in a chain may overwrite it.
    """
    parts = list(chain)
    for i, part in enumerate(parts[:-1]):
        if type(part) is nn.ReLU and type(parts[i + 1]) is nn.MaxPool2d and not parts[i + 1].return_indices:
            parts[i], parts[i + 1] = parts[i + 1], part
    for before, part in pairwise(parts):
        if type(part) is nn.ReLU and isinstance(before, FoldedLayer | nn.MaxPool2d):
            part.inplace = True
    return nn.Sequential(*parts)
