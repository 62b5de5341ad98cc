"""Local training, one client after another: an `nn.Module` whose parameters are views into the flat vector."""

import math
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..comm import interrupt
from ..data import ClientData, sent
from ..flat import FlatModule, training_in
from ..optim import Optimizer
from ..rng import global_seed
from ..tasks import Task
from ..types import Contrast, LocalResult
from .local import (
    NUMBERS_AT_ONCE,
    Correction,
    Local,
    LocalTrainingSpec,
    Trainer,
    arithmetic,
    channels_innermost,
    gains_innermost,
)


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


class SequentialTrainer(Trainer):
    """K = 1: E epochs of minibatch steps on one client at a time.

    The gradient of a plain step is never gathered: the optimizer works on the layers' views. Only where an algorithm
    corrects the gradient is it put side by side first.
    """

    width = 1

    def __init__(self, task: Task, data: ClientData, spec: LocalTrainingSpec) -> None:
        super().__init__(task, data, spec)
        self._flat = FlatModule(training_in(task.model(spec.seed), spec.dtype), spec.device)
        self.spec = self._flat.spec
        self._arithmetic = arithmetic(spec.device, spec.autocast)
        self._innermost: bool | None = None  # whether images are laid out so; found out on the first

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""
        (client,) = local.ids
        x, y = self.data.examples(client)
        order = self.plan(local)
        self._flat.load(start.view(-1))
        self._flat.module.train()
        compared = self._compared(local, x)
        with (
            global_seed(self._training.seed, "local", local.round, client),
            compared or nullcontext(),
        ):  # the seed: of dropout
            sizes = order.mask[0].sum(dim=1).tolist()
            loss, correct_count = self._steps(
                x, y, sent(order.index[0], x.device), sizes, correct, local.optimizer, compared
            )
        seen = max(1, int(order.mask.sum()))
        return LocalResult(
            start=start,
            delta=self._flat.w - start.view(1, -1),
            steps=order.steps,
            loss=torch.tensor([loss / seen], dtype=torch.float64),
            accuracy=torch.tensor([correct_count / seen], dtype=torch.float64),
        )

    def _compared(self, local: Local, x: Tensor) -> Comparison | None:
        """What compares the features of the client's examples ``x`` with those of other models, if anything does."""
        if local.contrast is None or not len(x):
            return None
        at_once = max(1, NUMBERS_AT_ONCE // x[0].numel())
        return Comparison(self._flat, local.contrast, [self.data.normalize(part) for part in x.split(at_once)])

    def _steps(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        sizes: list[int],
        correct: Correction | None,
        optimizer: Optimizer,
        compared: Comparison | None,
    ) -> tuple[float, float]:
        """All local steps; the summed loss and number of right answers over what was seen."""
        flat, task, module = self._flat, self._task, self._flat.module
        trainable = flat.w[: flat.spec.num_trainable]
        targets: list[Tensor] = [trainable] if correct else list(flat.params)
        with torch.no_grad():
            state = optimizer.init(targets)
        width = index.shape[1]
        numbers = max(x[0].numel(), math.prod(task.output_shape(y[:1]))) if len(x) else 1  # of an example
        chunk = max(1, NUMBERS_AT_ONCE // max(1, width * numbers))
        total_loss, total_right = [], []  # read at the end: a GPU would be waited for in between
        for first in range(0, len(sizes), chunk):
            rows = index[first : first + chunk].reshape(-1)
            labels = y[rows]
            inputs = self._laid_out(self.data.normalize(x[rows]), labels)
            outputs, losses, seen = [], [], []
            for step, size in enumerate(sizes[first : first + chunk]):
                interrupt.check()
                batch = slice(step * width, step * width + size)
                with self._arithmetic:
                    output = task.outputs(module, inputs[batch], labels[batch]).to(flat.w.dtype)
                loss = task.loss(output, labels[batch])
                target = loss.mean() if compared is None else (loss + compared.loss(rows[batch])).mean()
                grads = list(torch.autograd.grad(target, flat.params, materialize_grads=True))
                with torch.no_grad():
                    if correct:
                        gradient = torch.cat([g.reshape(-1) for g in grads]).unsqueeze(0)
                        grads = [correct(gradient, trainable.unsqueeze(0)).squeeze(0)]
                    optimizer.step_(targets, grads, state)
                outputs.append(output.detach())
                losses.append(loss.detach())
                seen.append(labels[batch])
            total_loss.append(torch.cat(losses).sum())
            total_right.append(task.correct(torch.cat(outputs), torch.cat(seen)).sum())
        return sum(map(float, total_loss)), sum(map(float, total_right))

    def _laid_out(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """``inputs`` as the model is fastest on them."""
        module, task = self._flat.module, self._task
        if self._innermost is None:
            with self._arithmetic:
                self._innermost = gains_innermost(
                    module, lambda x: task.outputs(module, x, labels[: len(x)]), inputs[:2]
                )
        return channels_innermost(inputs) if self._innermost else inputs
