"""What a model makes of an example before its last layer, for losses that compare models (see `types.Contrast`)."""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..flat import FlatModule
from ..types import Contrast


class Comparison:
    """The contrast's loss of one client's batches, inside a ``with``: features are caught on their way to the last
    linear layer. Raises ValueError for a module without one.

    Those of the models compared with are computed once for all examples, in evaluation mode, since they do not change
    while the client trains.
    """

    def __init__(self, model: FlatModule, contrast: Contrast, chunks: list[Tensor]) -> None:
        """``contrast.models [R, 1, D]``; ``chunks``: the client's examples in order, normalised."""
        self._model, self._loss, self._layer = model, contrast.loss, compared_layer(model.module)
        self._rows, self._chunks = contrast.models[:, 0], chunks

    def __enter__(self) -> Self:
        self._hook = self._layer.register_forward_pre_hook(self._catch)
        module = self._model.module.eval()
        with torch.no_grad():
            self._others = torch.stack([self._features(w) for w in self._rows])  # [R, n, d]
        module.train()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def loss(self, rows: Tensor) -> Tensor:
        """Of the examples ``rows [B]`` that the module has just seen, [B]."""
        return self._loss(self._caught, self._others[:, rows])

    def _features(self, w: Tensor) -> Tensor:
        """[n, d] of all examples at ``w [D]``."""
        found = []
        for x in self._chunks:
            functional_call(self._model.module, self._model.spec.views(w), (x,))
            found.append(self._caught)
        return torch.cat(found)

    def _catch(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._caught = inputs[0].flatten(1).to(self._model.w.dtype)


def compared_layer(module: nn.Module) -> nn.Linear:
    """The layer whose inputs are the features. Raises ValueError for a module without one."""
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError("the model has no linear layer whose input could be compared; use fedavg")
    return layers[-1]
