"""Wrappers by which clients go on where their last round ended: in the order of their data, or in their optimizer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..optim import Optimizer, OptimizerAround, OptimizerState
from ..types import ClientState, ClientUpdate, Contrast, LocalResult, ServerState
from .base import Around, LocalTraining, TrainingAround, unchanged

OPTIMIZER = "client.optimizer."
"""In a client's state: each vector of its optimizer's state, [K, P], or [K, 1] for a count of steps."""
STEPS = "client.steps"
"""In a client's state: how many steps it took so far, int64 [K, 1]."""


@dataclass(frozen=True)
class ContinuedOrder(Around):
    """Any algorithm ``inner``, whose clients go on in the order of their data at the batch after their last one.

    Where a client is in its data is the number of steps that it took; a round that it sits out, or in which its update
    is not accepted, does not count. So it sees all its examples once before it sees one twice, whatever H is.
    """

    own = (STEPS,)

    def init_client(self, server: ServerState) -> ClientState:
        return {**super().init_client(server), STEPS: torch.zeros(1, 1, dtype=torch.long, device=server.w.device)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        done = client[STEPS]
        update, state, result = super().client_update(server, client, local.after(done[:, 0].cpu()))
        return update, {**state, STEPS: done + result.steps.to(done)[:, None]}, result


@dataclass(frozen=True)
class KeptOptimizer(Around):
    """Any algorithm ``inner``, whose clients' ``optimizer`` goes on with the state in which their last round left it.

    As the workers' inner optimizers do in Douillard et al. 2023, "DiLoCo: Distributed low-communication training of
    language models", Algorithm 1. The state never leaves its client: an upload is what ``inner`` uploads. A client that
    sits out, or whose update is not accepted, keeps the state that it has. An ``inner`` that trains more than once a
    round is refused by the checks: whose moments would be kept?
    """

    own = (OPTIMIZER,)
    optimizer: Optimizer

    def init_client(self, server: ServerState) -> ClientState:
        state = self.optimizer.init([server.w[: server.num_trainable]])
        own = {OPTIMIZER + name: v.to(server.w.device).view(1, -1) for name, (v,) in state.items()}
        return {**super().init_client(server), **own}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        memory = {n.removeprefix(OPTIMIZER): rows for n, rows in client.items() if n.startswith(OPTIMIZER)}
        resumed = Resumed(local.optimizer, memory)
        update, state, result = super().client_update(server, client, _WithOptimizer(local, resumed))
        return update, {**state, **{OPTIMIZER + name: rows for name, rows in resumed.remembered().items()}}, result


class Resumed(OptimizerAround):
    """``inner`` on the flat vectors of K clients, from the state ``memory`` (name -> [K, d]) instead of a new one.

    A vector of which ``inner`` moves only the first entries (`Held`) uses as many of its row. How far a gradient moves
    a client depends on the rounds before, so `gradient_weight` is None.
    """

    def __init__(self, inner: Optimizer, memory: ClientState) -> None:
        super().__init__(inner)
        self._memory, self._state = memory, OptimizerState()

    def gradient_weight(self, steps: Tensor) -> None:
        return None

    def init(self, params: list[Tensor]) -> OptimizerState:
        new = self._inner.init(params)
        for name, rows in self._memory.items():
            pairs = zip(rows, new[name], strict=True)
            self._state[name] = [row[: v.numel()].view_as(v).to(v.device, copy=True) for row, v in pairs]
        return {**new, **self._state}

    def step_(self, params: list[Tensor], grads: list[Tensor], state: OptimizerState) -> None:
        self._inner.step_(params, grads, state)

    def remembered(self) -> ClientState:
        """Return the state after the steps, of the form of ``memory``."""
        after = {name: rows.clone() for name, rows in self._memory.items()}
        for name, vectors in self._state.items():
            for row, v in zip(after[name], vectors, strict=True):
                row[: v.numel()] = v.flatten()
        return after


class _WithOptimizer(TrainingAround):
    """``local`` with another optimizer, which gets flat vectors."""

    def __init__(self, local: LocalTraining, optimizer: Optimizer) -> None:
        super().__init__(local)
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def train(
        self,
        start: Tensor,
        correct=None,
        *,
        epochs: int | None = None,
        optimizer: Optimizer | None = None,
        contrast: Contrast | None = None,
    ) -> LocalResult:
        optimizer = optimizer or self._optimizer
        return super().train(start, correct or unchanged, epochs=epochs, optimizer=optimizer, contrast=contrast)
