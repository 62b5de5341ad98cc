"""What a round tells besides its mean: slots in the round's one collective, and the report made of their sums.

How much may be told depends on who may see it. `ClientTally` tells every client apart. `SumTally` tells sums over
clients, for runs in which no single one is to be seen. `CountTally` tells how many took part and nothing that was
computed from their examples, `SilentTally` not even that: noise on the mean bounds nothing if exact losses lie beside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from ..types import Cohort, LocalResult, Report, RoundReport, SummedReport


class Tally(ABC):
    """The account of one round. Slots that one rank writes and that are zero elsewhere are gathered by the sum."""

    def __init__(self, cohort: Cohort, examples: Tensor, ranks: int) -> None:
        """``examples [m]``: how many the cohort's clients own."""
        self._cohort, self._examples, self._ranks = cohort, examples, ranks

    @property
    @abstractmethod
    def size(self) -> int:
        """How many slots it needs, the same number on every rank."""

    @abstractmethod
    def bind(self, slots: Tensor) -> None:
        """Write to ``slots [size]``, which are zero, from now on."""

    @abstractmethod
    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        """The clients ``ids`` contributed; ``result`` is of these, in this order."""

    @abstractmethod
    def close(self, seconds: float, rank: int) -> None:
        """This rank has trained its clients, in ``seconds``."""

    def explain(self, reasons: Mapping[str, int]) -> None:
        """Why clients of this rank failed (reason -> how many): dropped where no single client may be told apart."""
        del reasons

    @abstractmethod
    def report(self) -> tuple[int | None, Report]:
        """How many clients contributed (None: not told) and the report, once the slots hold the sums over ranks."""

    def burnt(self, seconds: float) -> Report:
        """The report of a round that brings nothing, after this rank trained for ``seconds``."""
        return SummedReport((seconds,), failures=len(self._cohort.ids), trained_on=0, aborted=True)


class ClientTally(Tally):
    """A slot a client for its loss, its accuracy and its success; a slot a rank for its training time."""

    @property
    def size(self) -> int:
        return 3 * len(self._cohort.ids) + self._ranks

    def bind(self, slots: Tensor) -> None:
        m = len(self._cohort.ids)
        self._slot = {k: i for i, k in enumerate(self._cohort.ids)}
        self._loss, self._accuracy, self._succeeded = slots[: 3 * m].view(3, m)
        self._seconds = slots[3 * m :]
        self._reasons: Mapping[str, int] = {}

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        slots = [self._slot[k] for k in ids]
        self._loss[slots] = result.loss.to(self._loss)
        self._accuracy[slots] = result.accuracy.to(self._accuracy)
        self._succeeded[slots] = 1

    def close(self, seconds: float, rank: int) -> None:
        self._seconds[rank] = seconds

    def explain(self, reasons: Mapping[str, int]) -> None:
        self._reasons = dict(reasons)

    def report(self) -> tuple[int, Report]:
        failed = ~(self._succeeded > 0).cpu()
        report = RoundReport(
            loss=self._loss.double().cpu().masked_fill(failed, nan),
            accuracy=self._accuracy.double().cpu().masked_fill(failed, nan),
            examples=self._examples,
            failed=tuple(k for k, bad in zip(self._cohort.ids, failed.tolist(), strict=True) if bad),
            seconds_train=tuple(self._seconds.tolist()),
            reasons=self._reasons,
        )
        return int((~failed).sum()), report


class CountTally(Tally):
    """How many clients contributed, how many examples they own, a slot a rank for its training time."""

    _sums = 2

    @property
    def size(self) -> int:
        return self._sums + self._ranks

    def bind(self, slots: Tensor) -> None:
        self._sum, self._seconds = slots[: self._sums], slots[self._sums :]

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        owned = dict(zip(self._cohort.ids, self._examples.tolist(), strict=True))
        self._sum[0] += len(ids)
        self._sum[1] += sum(owned[k] for k in ids)

    def close(self, seconds: float, rank: int) -> None:
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
        owned = dict(zip(self._cohort.ids, self._examples.tolist(), strict=True))
        n = torch.tensor([owned[k] for k in ids], dtype=torch.float64)
        self._sum[2] += float(n @ result.loss.double().cpu())
        self._sum[3] += float(n @ result.accuracy.double().cpu())

    def _means(self, examples: int) -> tuple[float | None, float | None]:
        loss, accuracy = (float(s) / max(examples, 1) for s in self._sum[2:])
        return (loss, accuracy) if examples else (None, None)


class SilentTally(Tally):
    """Nothing leaves the rank; the report knows only how long this rank trained.

    Nor do training times: where the cohort is secret, they would tell which ranks have sampled clients.
    """

    @property
    def size(self) -> int:
        return 0

    def bind(self, slots: Tensor) -> None:
        pass

    def add(self, ids: Sequence[int], result: LocalResult) -> None:
        pass

    def close(self, seconds: float, rank: int) -> None:
        self._seconds = seconds

    def report(self) -> tuple[None, Report]:
        return None, SummedReport((self._seconds,))

    def burnt(self, seconds: float) -> Report:
        # a failure for each client would tell how many of this rank's were drawn
        return SummedReport((seconds,), aborted=True)
