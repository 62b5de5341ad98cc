"""What clients remember between rounds, on the rank where they live. Nothing for stateless algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UsageError, check_shapes
from ..types import ClientState

BESIDE = "beside/"
"""Before the names of another store's vectors, where both are saved together."""


class ClientStore:
    """Per-client vectors keyed by client id, made on first use, so that memory follows the clients that took part.

    What a round writes is held back until `commit`: a round that is interrupted, or that brings nothing (`discard`),
    leaves the store as it found it.
    """

    def __init__(self, device: torch.device | str = "cpu", beside: ClientStore | None = None) -> None:
        """``device``: where states are; ``beside``: another store of the same clients, committed and saved with this
        one."""
        self._device = device
        self._kept: dict[int, ClientState] = {}
        self._pending: dict[int, ClientState] = {}
        self.common: dict[str, Tensor] = {}
        """State common to all clients, name -> [d], equal on every rank."""
        self._pending_common: dict[str, Tensor] = {}
        self._committed: set[int] = set()
        self._lengths: dict[str, int] = {}  # of the vectors of a state, as `get` was last given them
        self._beside = beside

    @property
    def touched(self) -> set[int]:
        """The clients of this rank that took part before or in this round."""
        return {*self._kept, *self._pending}

    @property
    def committed(self) -> set[int]:
        """The clients of this rank whose state the last `commit` changed."""
        return self._committed | (self._beside.committed if self._beside else set())

    def get(self, ids: Iterable[int], new: ClientState) -> ClientState:
        """The states of ``ids`` side by side, name -> [K, d]; ``new``, name -> [1, d], where one never took part.

        Raises:
            UsageError: ``new`` or a stored state has other shapes.
        """
        self._lengths = {name: vectors.numel() for name, vectors in new.items()}
        check_shapes("init_client's", new, {name: [1, length] for name, length in self._lengths.items()})
        return _stacked([self._kept.get(k) or new for k in ids], new)

    def latest(self, ids: Iterable[int], new: ClientState) -> ClientState:
        """The same as `commit` will make it."""
        return _stacked([self._pending.get(k) or self._kept.get(k) or new for k in ids], new)

    def put(self, ids: Sequence[int], state: ClientState, rows: Iterable[int]) -> None:
        """Hold the new states of those of ``ids`` that ``rows`` counts until `commit`.

        Raises:
            UsageError: they have other names or shapes than the states that `get` returned.
        """
        check_shapes("the state", state, {name: [len(ids), length] for name, length in self._lengths.items()})
        for row in rows if state else ():
            self._pending[ids[row]] = {name: vectors[row : row + 1].clone() for name, vectors in state.items()}

    def put_common(self, state: Mapping[str, Tensor]) -> None:
        """Hold the state common to all clients until `commit`."""
        self._pending_common = dict(state)

    def commit(self) -> None:
        """The round is over: what it wrote is what clients remember."""
        self._kept.update(self._pending)
        self._committed = {*self._pending}
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

    def state_dict(self, ids: Iterable[int] | None = None) -> dict[str, Tensor]:
        """Everything kept, or that of some clients, "client/name" -> [d]; what is common to all has ``all`` as its
        client."""
        kept = self._kept if ids is None else {k: self._kept[k] for k in ids if k in self._kept}
        own = {f"{k}/{name}": v[0] for k, state in kept.items() for name, v in state.items()}
        own |= {f"all/{name}": vector for name, vector in self.common.items()}
        beside = self._beside.state_dict(ids) if self._beside else {}
        return own | {key.replace("/", f"/{BESIDE}", 1): vector for key, vector in beside.items()}

    def load_state_dict(self, saved: dict[str, Tensor], mine: Callable[[int], bool]) -> None:
        """Take over the clients that live here, whatever rank they lived on when they were saved."""
        self._kept.clear()
        self.common.clear()
        for key, vector in saved.items():
            client, name = key.split("/", 1)
            if name.startswith(BESIDE):
                continue
            if client == "all":
                self.common[name] = vector
            elif mine(int(client)):
                self._kept.setdefault(int(client), {})[name] = vector.unsqueeze(0).to(self._device)
        if self._beside:
            theirs = {key.replace(f"/{BESIDE}", "/", 1): v for key, v in saved.items() if f"/{BESIDE}" in key}
            self._beside.load_state_dict(theirs, mine)


def _stacked(states: Sequence[ClientState], new: ClientState) -> ClientState:
    """``states`` side by side; a name that is not in ``new`` is of an earlier version's checkpoint, and left out."""
    for name, vectors in new.items():
        lengths = {state[name].numel() if name in state else 0 for state in states} - {vectors.numel()}
        if lengths:
            raise UsageError(
                f"run.resume: a client's stored state {name!r} has {lengths.pop()} numbers, the algorithm's has "
                f"{vectors.numel()}: the algorithm was changed; start a new run",
                code="state-shapes",
            )
    return {name: torch.cat([state[name] for state in states]) for name in new}
