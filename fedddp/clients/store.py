"""What clients remember between rounds, on the rank where they live. Nothing for stateless algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..types import ClientState


class ClientStore:
    """Per-client vectors keyed by client id, made on first use, so that memory follows the clients that took part.

    What a round writes is held back until `commit`: an interrupted round leaves the store as it found it.
    """

    def __init__(self, initial: Callable[[], ClientState]) -> None:
        self._initial = initial  # -> name -> [1, d], the state of a client that never took part
        self._kept: dict[int, ClientState] = {}
        self._pending: dict[int, ClientState] = {}

    def get(self, ids: Iterable[int]) -> ClientState:
        """The states of ``ids`` side by side, name -> [K, d]."""
        return self._beside(self._kept.get(k) for k in ids)

    def latest(self, ids: Iterable[int]) -> ClientState:
        """The same as `commit` will make it."""
        return self._beside(self._pending.get(k) or self._kept.get(k) for k in ids)

    def put(self, ids: Sequence[int], state: ClientState, rows: Iterable[int]) -> None:
        """Hold the new states of those of ``ids`` that ``rows`` counts until `commit`."""
        for row in rows if state else ():
            self._pending[ids[row]] = {name: vectors[row : row + 1].clone() for name, vectors in state.items()}

    def commit(self) -> None:
        """The round is over: what it wrote is what clients remember."""
        self._kept.update(self._pending)
        self._pending.clear()

    def _beside(self, states: Iterable[ClientState | None]) -> ClientState:
        rows = [state or self._initial() for state in states]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything kept, "client/name" -> [d]."""
        return {f"{k}/{name}": v[0] for k, state in self._kept.items() for name, v in state.items()}

    def load_state_dict(self, saved: dict[str, Tensor], mine: Callable[[int], bool]) -> None:
        """Take over the clients that live here, whatever rank they lived on when they were saved."""
        self._kept.clear()
        like = self._initial()  # on the device where states are
        for key, vector in saved.items():
            client, name = key.split("/", 1)
            if mine(int(client)):
                self._kept.setdefault(int(client), {})[name] = vector.unsqueeze(0).to(like[name])
