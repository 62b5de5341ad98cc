"""Count the privacy that a run has spent, and decide whether another round fits the budget.

A round is spent before its sum is released, first in a file that is flushed to disk (`SpendLog`): a run that was
killed after a release and resumed from an older checkpoint counts the lost rounds too. Participation is counted and
epsilon computed from the counts, so that a resumed run's figure is that of the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..types import Cohort
from . import accounting
from .accounting import Accountant, Composition
from .guarantee import Guarantee

ALIKE = 1.002
"""Clients whose rates, and whose steps, differ by no more than this factor are taken for the worst of them."""


class Budget(Protocol):
    """What a round costs. All ranks hold the same one, whatever each knows of the cohort.

    ``account``: this rank's own record of it, if the rank keeps one.
    """

    account: AccountLog | None

    @property
    def epsilon(self) -> float | None:
        """Spent so far; None where nothing is promised."""
        ...

    @property
    def guarantee(self) -> Guarantee | None: ...

    @property
    def released(self) -> int:
        """The number of releases, lost ones among them."""
        ...

    def allows(self, cohort: Cohort) -> bool:
        """Whether the target holds after one more round, with ``cohort``."""
        ...

    def spend(self, cohort: Cohort) -> None:
        """Count a round, on disk too, before anything of it is released."""
        ...

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: the same names, shapes and types on every rank and at all times."""
        ...

    def recovered(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's state ({} for none) with what was released since, by the file that rank 0 has.

        All ranks are to `load` what this returns on rank 0. Nothing changes here.
        """
        ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...

    def composition(self, units: Sequence[int] | None = None, more: Tensor | int = 0, lost: int = 0) -> Composition:
        """What was spent about one of ``units`` (None: any), as segments of which each unit has one.

        Args:
            units: their numbers.
            more: how often each unit takes part in rounds to come, [N] or for all alike.
            lost: releases about every unit that this budget does not know of.
        """
        ...


class AccountLog(Protocol):
    """What a rank counts for itself, beyond the run, see `fedddp.setup.account.Account`."""

    def append(self, budget: Budget, round: int) -> None:
        """Record one more release, before it happens."""
        ...

    def release(self) -> None:
        """End the account's part in the run."""
        ...


class SpendLog(Protocol):
    """A record of releases that outlives the process, see `fedddp.checkpoints.spend_file.SpendFile`."""

    def append(self, release: int, round: int, clients: Sequence[int] | None) -> None: ...

    def since(self, release: int) -> list[list[int] | None]: ...


@dataclass(frozen=True)
class Limits:
    """What a budget keeps to, whatever it counts.

    ``sigma``: the noise multiplier of each composition. ``target``: the epsilon never to be exceeded, at ``delta``.
    ``spend_file``: rank 0's, None elsewhere.
    """

    sigma: float
    delta: float
    target: float | None = None
    accountant: Accountant = "prv"
    spend_file: SpendLog | None = None


class NoBudget:
    """Nothing is promised, so nothing is spent."""

    epsilon: float | None = None
    guarantee: Guarantee | None = None
    account: AccountLog | None = None
    released = 0

    def allows(self, cohort: Cohort) -> bool:
        return True

    def spend(self, cohort: Cohort) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def recovered(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass

    def composition(self, units: Sequence[int] | None = None, more: Tensor | int = 0, lost: int = 0) -> Composition:
        return ()


class Counting(ABC):
    """A budget that counts how often each of ``units`` took part; what those counts cost is the level's to say."""

    adjacency: str
    sampling: str
    account: AccountLog | None = None

    def __init__(self, units: int, limits: Limits) -> None:
        self._participations = torch.zeros(units, dtype=torch.int64)
        self._released = 0
        self._limits = limits
        self._known: dict[bytes, float] = {}

    @abstractmethod
    def _counted(self, cohort: Cohort) -> list[int] | None:
        """Those of the units that take part; None for all of them."""

    @abstractmethod
    def _cost(self, participations: Tensor) -> float: ...

    @abstractmethod
    def _compositions(self, participations: Tensor) -> Tensor:
        """How many compositions each unit's participations are."""

    @abstractmethod
    def _segments(self, compositions: Tensor, units: Sequence[int] | None) -> Composition: ...

    @property
    def released(self) -> int:
        """The number of releases, lost ones among them."""
        return self._released

    @property
    def epsilon(self) -> float:
        return self._after(self._participations)

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee(self.epsilon, self._limits.delta, self.adjacency, self.sampling, self._limits.accountant)

    def allows(self, cohort: Cohort) -> bool:
        if self._limits.target is None:
            return True
        return self._after(_plus(self._participations, self._counted(cohort))) <= self._limits.target

    def spend(self, cohort: Cohort) -> None:
        who = self._counted(cohort)
        self._participations = _plus(self._participations, who)
        self._released += 1
        if self._limits.spend_file is not None:
            self._limits.spend_file.append(self._released, cohort.round, who)
        if self.account is not None:
            self.account.append(self, cohort.round)

    def composition(self, units: Sequence[int] | None = None, more: Tensor | int = 0, lost: int = 0) -> Composition:
        known, unknown = self._participations + more, torch.full_like(self._participations, lost)
        return self._segments(self._compositions(known) + self._compositions(unknown), units)

    def state(self) -> dict[str, Tensor]:
        return {
            "participations": self._participations,
            "released": torch.tensor([self._released]),
            "sigma": torch.tensor([self._limits.sigma], dtype=torch.float64),
        }

    def recovered(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = {
            **self.state(),
            "participations": torch.zeros_like(self._participations),
            "released": torch.tensor([0]),
        }
        state |= saved
        if self._limits.spend_file is None:
            return state
        participations, released = state["participations"], int(state["released"])
        for who in self._limits.spend_file.since(released):
            participations, released = _plus(participations, who), released + 1
        return {**state, "participations": participations, "released": torch.tensor([released])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``. Raises ValueError for one of another population or another sigma."""
        sigma, participations = float(state["sigma"]), state["participations"].cpu()
        if sigma != self._limits.sigma:
            raise ValueError(
                f"privacy.noise_multiplier={self._limits.sigma:g}: what is resumed was spent with {sigma:g}; use that"
            )
        if participations.shape != self._participations.shape:
            raise ValueError(
                f"what is resumed has the budget of {len(participations)} parties, this run of "
                f"{len(self._participations)}; start a new run"
            )
        self._participations, self._released = participations, int(state["released"])

    def _epsilon(self, q: float, steps: int, accountant: Accountant | None = None) -> float:
        """Of so many compositions at rate ``q``."""
        limits = self._limits
        return accounting.epsilon(limits.sigma, q, steps, limits.delta, accountant or limits.accountant)

    def _after(self, participations: Tensor) -> float:
        key = participations.numpy().tobytes()
        if key not in self._known:
            self._known = dict([*self._known.items()][-1:])  # now, and one round on, are all that is asked for
            self._known[key] = self._cost(participations)
        return self._known[key]


class ClientBudget(Counting):
    """Client level: one composition a round, at the rate ``q`` at which clients are drawn, whoever was drawn.

    Nothing about the cohort is read or written.
    """

    def __init__(self, q: float, limits: Limits) -> None:
        super().__init__(1, limits)
        self._q = q
        self.adjacency = "with or without the update of one client; the number of clients is public"
        self.sampling = f"Poisson cohorts at rate {q:g}"

    def _counted(self, cohort: Cohort) -> None:
        return None

    def _cost(self, participations: Tensor) -> float:
        return self._epsilon(self._q, int(self._compositions(participations)))

    def _compositions(self, participations: Tensor) -> Tensor:
        return participations

    def _segments(self, compositions: Tensor, units: Sequence[int] | None) -> Composition:
        return ((self._limits.sigma, self._q, int(compositions)),)


class ExampleBudget(Counting):
    """Example level: a client that takes part spends its ``steps`` at its ``q``; epsilon is the worst client's.

    That holds for every example, because an example belongs to one client and only that client's steps read it. Cohorts
    are public and count in full: no amplification is claimed for them.
    """

    def __init__(self, q: Tensor, steps: Tensor, limits: Limits) -> None:
        """``q [N]``: at which rate each client draws its examples; ``steps [N]``: its steps in a round."""
        super().__init__(len(q), limits)
        self._q, self._steps = q.numpy(force=True).astype(np.float64), steps.cpu().long()
        self.adjacency = "with or without the gradient of one example; the number of examples of each client is public"
        rates = sorted({f"{self._q.min():.3g}", f"{self._q.max():.3g}"}, key=float)
        self.sampling = f"Poisson batches at rate {' to '.join(rates)}, the client that spent most"

    def _counted(self, cohort: Cohort) -> list[int] | None:
        return None if len(cohort.ids) == len(self._q) else list(cohort.ids)

    def _cost(self, participations: Tensor) -> float:
        return worst(self._q, self._compositions(participations).numpy(), self._epsilon)

    def _compositions(self, participations: Tensor) -> Tensor:
        return participations * self._steps

    def _segments(self, compositions: Tensor, units: Sequence[int] | None) -> Composition:
        of = slice(None) if units is None else list(units)
        front = undominated(self._q[of], compositions.numpy()[of])
        return tuple((self._limits.sigma, q, steps) for q, steps in front)


def worst(q: np.ndarray, steps: np.ndarray, cost: Callable[..., float]) -> float:
    """The largest ``cost(q_k, steps_k)`` over clients, for a cost that grows with both, without asking for each one.

    Best first over runs of the clients that no other dominates: those have falling rates and rising steps, so that a
    run costs no more than its largest rate with its largest steps. Where that is nearly one of its clients' own (see
    `ALIKE`) it is not divided further, and the result is up to that much too large, never too small.
    ``cost(q, steps, "rdp")`` is a cheaper bound of it.
    """
    front = undominated(q, steps)
    if not front:
        return 0.0
    ties = count()
    bounds = [(-cost(front[0][0], front[-1][1], "rdp"), next(ties), 0, len(front), False)]
    while True:
        bound, _, start, end, exact = heapq.heappop(bounds)
        (most_q, fewest), (least_q, most) = front[start], front[end - 1]
        if not exact:
            heapq.heappush(bounds, (-cost(most_q, most), next(ties), start, end, True))
        elif most_q <= ALIKE * least_q and most <= ALIKE * fewest:
            return -bound
        else:
            middle = (start + end) // 2
            for a, b in ((start, middle), (middle, end)):
                heapq.heappush(bounds, (-cost(front[a][0], front[b - 1][1], "rdp"), next(ties), a, b, False))


def undominated(q: np.ndarray, steps: np.ndarray) -> list[tuple[float, int]]:
    """Of the pairs with steps those that no other one exceeds in both: rates fall, steps rise."""
    order = np.lexsort((-steps, -q))
    rates, taken = q[order], steps[order]
    before = np.concatenate([[0], np.maximum.accumulate(taken)[:-1]]) if len(taken) else taken
    keep = taken > before
    return list(zip(rates[keep].tolist(), taken[keep].tolist(), strict=True))


def _plus(participations: Tensor, who: Sequence[int] | None) -> Tensor:
    """With one more of those; a new tensor."""
    if who is None:
        return participations + 1
    more = torch.zeros_like(participations)
    more[list(who)] = 1
    return participations + more
