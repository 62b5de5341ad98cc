"""Wrappers by which clients go on where their last round ended: their optimizer's state."""

from dataclasses import dataclass

from torch import Tensor

from ..optim import Optimizer, OptimizerAround, OptimizerState
from ..types import ClientState, ClientUpdate, Contrast, LocalResult, ServerState
from .base import Around, LocalTraining, TrainingAround, unchanged

OPTIMIZER = "client.optimizer."
"""In a client's state: each vector of its optimizer's state, [K, P], or [K, 1] for a count of steps."""


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
