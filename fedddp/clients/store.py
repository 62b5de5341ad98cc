"""What clients remember between rounds, on the rank where they live. Nothing for stateless algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..types import ClientState

BESIDE = "beside/"
"""Before the names of another store's vectors, where both are saved together."""


class ClientStore:
    """Per-client vectors keyed by client id, made on first use, so that memory follows the clients that took part.

    What a round writes is held back until `commit`: a round that is interrupted, or that brings nothing (`discard`),
    leaves the store as it found it.
    """

    def __init__(self, initial: Callable[[], ClientState], beside: ClientStore | None = None) -> None:
        """``beside``: another store of the same clients, committed and saved with this one."""
        self._initial = initial  # -> name -> [1, d], the state of a client that never took part
        self._kept: dict[int, ClientState] = {}
        self._pending: dict[int, ClientState] = {}
        self.common: dict[str, Tensor] = {}
        """State common to all clients, name -> [d], equal on every rank."""
        self._pending_common: dict[str, Tensor] = {}
        self._beside = beside

    @property
    def remembers(self) -> bool:
        """Whether clients have a state at all."""
        return bool(self._initial()) or (self._beside is not None and self._beside.remembers)

    @property
    def touched(self) -> set[int]:
        """The clients of this rank that took part before or in this round."""
        return {*self._kept, *self._pending}

    def initial(self) -> ClientState:
        """The state of a client that never took part, name -> [1, d]."""
        return self._initial()

    def get(self, ids: Iterable[int]) -> ClientState:
        """The states of ``ids`` side by side, name -> [K, d]."""
        return self._stacked(self._kept.get(k) for k in ids)

    def latest(self, ids: Iterable[int]) -> ClientState:
        """The same as `commit` will make it."""
        return self._stacked(self._pending.get(k) or self._kept.get(k) for k in ids)

    def put(self, ids: Sequence[int], state: ClientState, rows: Iterable[int]) -> None:
        """Hold the new states of those of ``ids`` that ``rows`` counts until `commit`."""
        for row in rows if state else ():
            self._pending[ids[row]] = {name: vectors[row : row + 1].clone() for name, vectors in state.items()}

    def put_common(self, state: Mapping[str, Tensor]) -> None:
        """Hold the state common to all clients until `commit`."""
        self._pending_common = dict(state)

    def commit(self) -> None:
        """The round is over: what it wrote is what clients remember."""
        self._kept.update(self._pending)
        self.common |= self._pending_common
        self._pending.clear()
        self._pending_common.clear()
        if self._beside:
            self._beside.commit()

    def discard(self) -> None:
        """The round brought nothing: what it wrote is forgotten."""
        self._pending.clear()
        self._pending_common.clear()
        if self._beside:
            self._beside.discard()

    def _stacked(self, states: Iterable[ClientState | None]) -> ClientState:
        rows = [state or self._initial() for state in states]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything kept, "client/name" -> [d]; the state common to all clients has ``all`` as its client."""
        own = {f"{k}/{name}": v[0] for k, state in self._kept.items() for name, v in state.items()}
        own |= {f"all/{name}": vector for name, vector in self.common.items()}
        beside = self._beside.state_dict() if self._beside else {}
        return own | {key.replace("/", f"/{BESIDE}", 1): vector for key, vector in beside.items()}

    def load_state_dict(self, saved: dict[str, Tensor], mine: Callable[[int], bool]) -> None:
        """Take over the clients that live here, whatever rank they lived on when they were saved."""
        self._kept.clear()
        self.common.clear()
        like = self._initial()  # on the device where states are
        for key, vector in saved.items():
            client, name = key.split("/", 1)
            if name.startswith(BESIDE):
                continue
            if client == "all":
                self.common[name] = vector
            elif mine(int(client)):
                self._kept.setdefault(int(client), {})[name] = vector.unsqueeze(0).to(like[name].device)
        if self._beside:
            theirs = {key.replace(f"/{BESIDE}", "/", 1): v for key, v in saved.items() if f"/{BESIDE}" in key}
            self._beside.load_state_dict(theirs, mine)
