"""Local training of K clients together: their parameters are the rows of ``w [K, D]``, a step moves all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..comm import interrupt
from ..data import BatchPlan, ClientData, sent
from ..flat import FlatSpec, buffers
from ..optim import Optimizer
from ..tasks import Task
from ..types import LocalResult
from .local import NUMBERS_AT_ONCE, Correction, Local, LocalTrainingSpec, Trainer, arithmetic

Batch = tuple[Tensor, Tensor, Tensor]
"""``x [K, B, ...]``, ``y [K, B]``, ``share [K, B]`` of each example in its client's gradient."""
NO_RULE = "There is a performance drop because we have not yet implemented the batching rule"
"""How torch's warning begins that an operation is done for one client after the other within `vmap`."""


class Oracle(Protocol):
    """Gradients of K clients at once, written down for others."""

    @property
    def spec(self) -> FlatSpec: ...

    def collect(self, w: Tensor, g: Tensor) -> None:
        """From now on, write the gradients at the rows of ``w [K, D]`` to ``g [K, P]``."""
        ...

    def step(self, task: Task, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the first A clients: the gradient of ``sum_b share[k, b] loss[k, b]`` for each of them.

        ``x [A, B, ...]``, ``y [A, B]``, ``share [A, B]``; outputs [A, B, C] and losses [A, B].
        """
        ...


@runtime_checkable
class Descending(Oracle, Protocol):
    """An oracle that can also descend along the gradients at once."""

    def begin(self, start: Tensor, rows: Tensor, lr: float, seen: int) -> None:
        """From now on, move K clients by ``- lr`` times their gradients, from ``start`` ([1, D] or [K, D]).

        ``rows [K, D]`` is theirs to work in; ``seen``: how many examples of a client will come.
        """
        ...

    def finish(self) -> None:
        """After the last step: ``rows`` becomes how far each client moved."""
        ...


class VectorizedTrainer(Trainer):
    """E epochs of minibatch steps on ``width`` clients at once.

    Ragged clients: short batches are padded and the padding has no share in the gradient. A client that has done its
    steps stays where it is, its momentum included. Blocks come longest client first (see `sampling.assign`), so the
    clients still at work are the first rows, and only those are computed where nothing else needs the others.
    """

    def __init__(
        self,
        task: Task,
        data: ClientData,
        spec: LocalTrainingSpec,
        oracle: Oracle,
        width: int,
        alone: Trainer | None = None,
    ) -> None:
        """``alone``: trains one client at a time, for what cannot be batched: losses that compare features."""
        super().__init__(task, data, spec)
        self._oracle, self.width, self._alone = oracle, width, alone

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""
        start = start.view(-1, start.shape[-1])  # [1, D], or [K, D]
        if local.contrast is not None:
            return self._one_by_one(local, start, correct)
        order = self.plan(local)
        tally = _Tally(order, start.device)
        batches = self._batches(local.ids, sent(order.index, start.device), tally.mask, start.dtype)
        optimizer = local.optimizer
        lr = optimizer.plain_lr
        if correct is None and lr is not None and isinstance(self._oracle, Descending):
            delta = self._descend(self._oracle, start, order, batches, tally, lr)
        else:
            delta = self._collect(start, order, batches, tally, correct, optimizer)
        return LocalResult(start, delta, order.steps, *tally.means(order.mask.sum(dim=(1, 2))))

    def _one_by_one(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """Each client by the trainer for one. Raises ValueError where there is none."""
        contrast = local.contrast
        if self._alone is None or contrast is None:
            raise ValueError("clients whose features are compared train one by one, and nothing here does that")
        starts, results = start.expand(len(local.ids), -1), []
        for row, client in enumerate(local.ids):
            own = replace(contrast, models=contrast.models[:, row : row + 1])
            mine = replace(self._alone.on((client,), local.round), done=_row(local.done, row))
            correct_row = _of_row(correct, row, len(local.ids))
            results.append(
                mine.train(starts[row], correct_row, epochs=local.epochs, optimizer=local.chosen, contrast=own)
            )
        parts = {
            name: torch.cat([getattr(r, name) for r in results]) for name in ("delta", "steps", "loss", "accuracy")
        }
        return LocalResult(start, **parts)

    def _descend(
        self, oracle: Descending, start: Tensor, order: BatchPlan, batches: Iterator[Batch], tally: _Tally, lr: float
    ) -> Tensor:
        """w <- w - lr g inside the backward pass, of the clients up to the last that is still at work; delta [K, D]."""
        rows = start.new_empty(len(order.steps), start.shape[1])
        oracle.begin(start, rows, lr, order.index.shape[1:].numel())
        for (x, y, share), mask, k in zip(batches, tally.mask, _at_work(order), strict=True):
            outputs, losses = oracle.step(self._task, x[:k], y[:k], share[:k])
            tally.add(self._task, outputs, losses, y[:k], mask[:k])
        oracle.finish()
        return rows

    def _collect(
        self,
        start: Tensor,
        order: BatchPlan,
        batches: Iterator[Batch],
        tally: _Tally,
        correct: Correction | None,
        optimizer: Optimizer,
    ) -> Tensor:
        """The gradients of all clients, corrected, to the optimizer, which moves those still at work; delta [K, D]."""
        w = start.expand(len(order.steps), -1).clone()
        trainable = w[:, : self._oracle.spec.num_trainable]
        g = torch.zeros_like(trainable)
        self._oracle.collect(w, g)
        rows = list(trainable)
        with torch.no_grad():
            state = optimizer.init(rows)
        for t, ((x, y, share), mask, k) in enumerate(zip(batches, tally.mask, _at_work(order), strict=True)):
            outputs, losses = self._oracle.step(self._task, x[:k], y[:k], share[:k])
            tally.add(self._task, outputs, losses, y[:k], mask[:k])
            with torch.no_grad():
                g[k:].zero_()  # of clients that are done; a correction may add up what it sees
                gradients = correct(g, trainable) if correct else g
                these = (order.steps > t).nonzero().flatten().tolist()
                moments = {name: [vectors[i] for i in these] for name, vectors in state.items()}
                optimizer.step_([rows[i] for i in these], [gradients[i] for i in these], moments)
        return w.sub_(start)

    def _batches(self, ids: Sequence[int], index: Tensor, mask: Tensor, dtype: torch.dtype) -> Iterator[Batch]:
        """The block's batches step by step, made ready for several steps at once."""
        index = index.transpose(0, 1)  # [T, K, B], as the mask is
        share = mask.to(dtype) / mask.sum(dim=2, keepdim=True).clamp(min=1)
        first, at_once = 0, 1
        while first < len(index):
            x, y = self.data.gather(ids, index[first : first + at_once])
            for t in range(len(x)):
                interrupt.check()
                yield x[t], y[t], share[first + t]
            first += at_once
            at_once = max(1, NUMBERS_AT_ONCE // max(1, x[0].numel()))


def _row(values: Tensor | None, row: int) -> Tensor | None:
    return None if values is None else values[row : row + 1]


def _of_row(correct: Correction | None, row: int, k: int) -> Correction | None:
    """``correct`` of K clients for one of them, in whose ``row`` it may have numbers of its own."""
    if correct is None:
        return None
    return lambda g, w: correct(g.expand(k, -1), w.expand(k, -1))[row : row + 1]


def _at_work(order: BatchPlan) -> list[int]:
    """Return for each step the number of rows up to the last client that is still at work."""
    return [int((order.steps > t).nonzero().max()) + 1 for t in range(order.index.shape[1])]


class _Tally:
    """Loss and right answers of each client, summed over what it saw."""

    def __init__(self, order: BatchPlan, device: torch.device) -> None:
        self.mask = sent(order.mask, device).transpose(0, 1)  # [T, K, B]
        self._loss = torch.zeros(len(order.steps), dtype=torch.float64, device=device)
        self._right = torch.zeros_like(self._loss)

    def add(self, task: Task, outputs: Tensor, losses: Tensor, y: Tensor, mask: Tensor) -> None:
        """A step of the first clients: outputs [A, B, C], losses, y and mask [A, B]."""
        right = task.correct(outputs.flatten(0, 1), y.flatten(0, 1)).view_as(mask)
        self._loss[: len(mask)] += (losses * mask).sum(dim=1)
        self._right[: len(mask)] += (right * mask).sum(dim=1)

    def means(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of each client, [K] float64."""
        seen = seen.clamp(min=1)
        return self._loss.cpu() / seen, self._right.cpu() / seen


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
        for name, _ in buffers(module):
            raise ValueError(f"{name} is a buffer, which batched clients would have in common")
        self._trainable = [name for name, p in module.named_parameters() if p.requires_grad]

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `Oracle.collect`."""
        self._views, self._collected = self.spec.views(w), g

    def step(self, task: Task, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """See `Oracle.step`."""

        def loss(
            trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            with self._arithmetic, sdpa_kernel(SDPBackend.MATH):  # of attention, the one that vmap has rules for
                outputs = task.outputs(lambda *args: functional_call(self._module, {**trained, **fixed}, args), x, y)
                outputs = outputs.to(share.dtype)
            losses = task.loss(outputs, y)
            return (losses * share).sum(), (outputs, losses)

        views = {name: view[: len(x)] for name, view in self._views.items()}
        trained = {name: views.pop(name) for name in self._trainable}
        with self._heeded() if self.falls_back is None else unwarned(self.falls_back):
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
def unwarned(falls_back: bool = True) -> Iterator[None]:
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
