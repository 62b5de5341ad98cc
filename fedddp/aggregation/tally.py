"""What a round reports besides its mean: slots in the round's one collective, and the report made of their sums.

How much may be reported depends on who may see it. `ClientTally` reports every client by itself, `DriftTally` also how
far their updates point in one direction. `SumTally` reports
sums over clients, for runs in which no single one may be visible. `CountTally` reports how many took part and nothing
that was computed from their examples, `SilentTally` not even that: noise on the mean bounds nothing if exact losses
accompany it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ..types import Cohort, LocalResult, Report, RoundAborted, RoundReport, SummedReport, finite

ROUNDED, TINY = 2.1, 1e-12
"""What rounding may add: a factor of the norm (exact sums may double tiny terms), a term of its square."""
AT_ONCE = 2**20
"""Numbers that are reduced at once in another precision: torch copies them into it first."""


class Tally:
    """The account of one round. This base class sends and reports nothing.

    Slots that one rank writes and that are zero elsewhere are gathered by the sum.

    ``names_failed``: whether this rank may log in which round which of its clients failed.
    """

    names_failed: ClassVar[bool] = True
    norms: Tensor | None = None
    """The norms of all updates, 0 for a client that failed, once the slots hold sums over ranks; None: not reported."""

    def __init__(self, cohort: Cohort, examples: Tensor, ranks: int) -> None:
        """``examples [m]``: how many the cohort's clients own."""
        self._cohort, self._examples, self._ranks = cohort, examples, ranks
        self._own_seconds, self._reasons = 0.0, dict[str, int]()

    @property
    def size(self) -> int:
        """Number of slots, the same on every rank."""
        return 0

    def bind(self, slots: Tensor) -> None:
        """Write to ``slots [size]``, which are zero, from now on."""

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        """Enter that the clients ``ids`` contributed; ``result`` is of these, in this order."""

    def close(self, seconds: float, rank: int, reasons: Mapping[str, int]) -> None:
        """Enter that this rank trained its clients in ``seconds``; ``reasons``: why some failed -> how many."""
        self._own_seconds, self._reasons = seconds, dict(reasons)

    def uploaded(self, ids: Sequence[int], weight: Tensor, lengths: Tensor) -> None:
        """Enter the ``weight [K]`` and the length, ||u_k||, of what each of the clients ``ids`` uploaded."""

    def summed(self, total: Tensor, weight: float) -> None:
        """Take the sum of all uploads and the summed weight, once the slots hold sums over ranks.

        Raises RoundAborted for a sum that these uploads cannot have.
        """

    def report(self) -> tuple[int | None, Report]:
        """How many clients contributed (None: not reported) and the report, once the slots hold sums over ranks."""
        return None, SummedReport(())

    def aborted(self) -> Report:
        """The report of an aborted round."""
        return SummedReport((self._own_seconds,), failures=len(self._cohort.ids), trained_on=0, aborted=True)


class SilentTally(Tally):
    """Nothing leaves the rank: where the cohort is secret, even training times would show who has sampled clients."""

    names_failed = False

    def aborted(self) -> Report:
        return SummedReport((), aborted=True)  # failures would be the number of sampled clients


class ClientTally(Tally):
    """Three slots per client, for its loss, its accuracy and its success; one per rank for its training time."""

    _rows = 3

    @property
    def size(self) -> int:
        return self._rows * len(self._cohort.ids) + self._ranks

    def bind(self, slots: Tensor) -> None:
        m = len(self._cohort.ids)
        self._slot = {k: i for i, k in enumerate(self._cohort.ids)}
        rows = slots[: self._rows * m].view(self._rows, m)
        self._loss, self._accuracy, self._succeeded = rows[:3]
        self._lengths = rows[3:]
        self._seconds = slots[self._rows * m :]

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        slots = [self._slot[k] for k in ids]
        self._loss[slots] = result.loss.to(self._loss)
        self._accuracy[slots] = result.accuracy.to(self._accuracy)
        self._succeeded[slots] = 1

    def close(self, seconds: float, rank: int, reasons: Mapping[str, int]) -> None:
        super().close(seconds, rank, reasons)
        self._seconds[rank] = seconds

    def report(self) -> tuple[int, Report]:
        failed = ~(self._succeeded > 0).cpu()
        report = RoundReport(
            loss=self._loss.double().cpu().masked_fill(failed, nan),
            accuracy=self._accuracy.double().cpu().masked_fill(failed, nan),
            examples=self._examples,
            failed=tuple(k for k, bad in zip(self._cohort.ids, failed.tolist(), strict=True) if bad),
            seconds_train=tuple(self._seconds.tolist()),
            reasons=self._reasons,
            ids=self._cohort.ids,
        )
        return int((~failed).sum()), report


class DriftTally(ClientTally):
    """The same, and two slots per client for the length of its upload, weighted and not: how far clients drift apart.

    For sums of whole uploads only. The cosine is the mean over pairs of clients j, k of cos(u_j, u_k), weighted by
    w_j ||u_j|| w_k ||u_k||: (||sum w u||^2 - sum w^2 ||u||^2) / ((sum w ||u||)^2 - sum w^2 ||u||^2).

    By the triangle inequality ||sum w u|| <= sum w ||u||: a longer sum was altered after its uploads were added.
    """

    _rows = 5
    _norm = _cosine = nan

    def uploaded(self, ids: Sequence[int], weight: Tensor, lengths: Tensor) -> None:
        slots = [self._slot[k] for k in ids]
        self._lengths[0, slots] = (weight.to(lengths) * lengths).to(self._lengths)
        self._lengths[1, slots] = lengths.to(self._lengths)

    def summed(self, total: Tensor, weight: float) -> None:
        lengths, self.norms = self._lengths.double().cpu()
        norms = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in total.split(AT_ONCE))
        together, longest = sum(float(norm) ** 2 for norm in norms), float(lengths.sum())
        if not together <= (longest * ROUNDED) ** 2 + TINY:
            raise RoundAborted(
                f"the sum over all ranks has norm {sqrt(together):.3g}, and the updates in it {longest:.3g} at most: a "
                "rank or its network altered it. A sum does not show which; check the machines' memory and network"
            )
        if weight:
            self._norm = longest / weight
        if (lengths > 0).sum() > 1:
            own = float(lengths.square().sum())
            self._cosine = (together - own) / (longest**2 - own)

    def report(self) -> tuple[int, Report]:
        count, report = super().report()
        return count, replace(report, update_norm=finite(self._norm), update_cosine=finite(self._cosine))


class CountTally(Tally):
    """How many clients contributed and how many examples they own; a slot per rank for its training time."""

    _sums = 2

    @property
    def size(self) -> int:
        return self._sums + self._ranks

    def bind(self, slots: Tensor) -> None:
        self._sum, self._seconds = slots[: self._sums], slots[self._sums :]

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        self._sum[0] += len(ids)
        self._sum[1] += float(self._owned(ids).sum())

    def _owned(self, ids: Sequence[int]) -> Tensor:
        owned = dict(zip(self._cohort.ids, self._examples.tolist(), strict=True))
        return torch.tensor([owned[k] for k in ids], dtype=torch.float64)

    def close(self, seconds: float, rank: int, reasons: Mapping[str, int]) -> None:
        super().close(seconds, rank, reasons)
        self._seconds[rank] = seconds

    def report(self) -> tuple[int, Report]:
        count, examples = (round(s) for s in self._sum[:2].tolist())
        failures = len(self._cohort.ids) - count
        return count, SummedReport(tuple(self._seconds.tolist()), failures, examples, *self._means(examples))

    def _means(self, examples: int) -> tuple[float | None, float | None]:
        return None, None


class SumTally(CountTally):
    """The same, and the sums of n_k loss_k and n_k accuracy_k."""

    _sums = 4

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        super().add(ids, result)
        n = self._owned(ids)
        self._sum[2] += float(n @ result.loss.double().cpu())
        self._sum[3] += float(n @ result.accuracy.double().cpu())

    def _means(self, examples: int) -> tuple[float | None, float | None]:
        loss, accuracy = (float(s) / max(examples, 1) for s in self._sum[2:])
        return (loss, accuracy) if examples else (None, None)
