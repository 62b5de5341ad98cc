"""Gradients of K clients by `torch.func.vmap`: any model without statistics of batches, some memory slower."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..flat import FlatSpec
from ..tasks import Task
from .arithmetic import arithmetic

NO_RULE = "There is a performance drop because we have not yet implemented the batching rule"
"""How torch's warning begins that an operation is done for one client after the other within `vmap`."""


class VmappedModel:
    """``module`` differentiated for K sets of weights at once. Raises ValueError for one that keeps buffers.

    It differentiates with respect to the layers' views and puts the gradients side by side afterwards: through the
    flat vector itself, every slice would write a gradient of full length.

    ``falls_back``: whether torch has no batching rule for an operation of the model; None before the first step, which
    finds it out. Torch's warnings of that are not shown.
    """

    falls_back: bool | None = None

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu", autocast: bool = False) -> None:
        self.spec = FlatSpec.of(module)
        self._module = module.to(device).train()
        self._arithmetic = arithmetic(device, autocast)
        kept = module.state_dict(keep_vars=True).keys()  # others are constants, the same for all clients
        buffers = [name for name, _ in module.named_buffers() if name in kept]
        if buffers:
            raise ValueError(f"{buffers[0]} is a buffer, which batched clients would have in common")
        self._trainable = [name for name, p in module.named_parameters() if p.requires_grad]

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `Oracle.collect`."""
        self._views, self._collected = self.spec.views(w), g

    def step(self, task: Task, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """See `Oracle.step`."""

        def loss(
            trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            with self._arithmetic:
                outputs = task.outputs(lambda *args: functional_call(self._module, {**trained, **fixed}, args), x, y)
                outputs = outputs.to(share.dtype)
            losses = task.loss(outputs, y)
            return (losses * share).sum(), (outputs, losses)

        views = {name: view[: len(x)] for name, view in self._views.items()}
        trained = {name: views.pop(name) for name in self._trainable}
        with self._heeded() if self.falls_back is None else _unwarned(self.falls_back):
            gradients, (outputs, losses) = vmap(grad(loss, has_aux=True))(trained, views, x, y, share)
        torch.cat([gradients[name].flatten(1) for name in self._trainable], dim=1, out=self._collected[: len(x)])
        return outputs, losses

    @contextmanager
    def _heeded(self) -> Iterator[None]:
        """Find out whether torch warns of a missing batching rule; other warnings are shown."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield
        self.falls_back = any(str(w.message).startswith(NO_RULE) for w in seen)
        for w in seen:
            if not str(w.message).startswith(NO_RULE):
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


@contextmanager
def _unwarned(falls_back: bool) -> Iterator[None]:
    """Without torch's warnings of missing batching rules; its switch has no reader, and is on by default."""
    functorch = getattr(torch._C, "_functorch", None) if falls_back else None
    switch = getattr(functorch, "_set_vmap_fallback_warning_enabled", None)
    if switch:
        switch(False)
    try:
        yield
    finally:
        if switch:
            switch(True)
