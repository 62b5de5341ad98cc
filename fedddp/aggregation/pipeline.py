"""Aggregate the clients' updates to the server's mean, by one collective per round.

The buffer of that collective holds the weighted sum of the updates and, behind it, the summed weight, one slot a rank
for the checksum of the model it started from, and what the round tells about itself (`Tally`). A slot is written by one
rank and zero elsewhere, so the sum is a gather.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from ..comm import Comm, CommError
from ..sampling import blocks
from ..types import Cohort, LocalResult, Mean, Report, RoundBurnt, ServerState, Update
from .failures import Failures
from .reduce import Reduce
from .tally import ClientTally, Tally

log = logging.getLogger("fedddp")


class Pipeline:
    """What every round's aggregation has in common: the layout of an update and the sum."""

    def __init__(
        self,
        layout: Mapping[str, int],
        reduce: Reduce,
        sizes: Tensor,
        comm: Comm,
        *,
        tally: type[Tally] = ClientTally,
        denominator: float | None = None,
        perturb: Callable[[ServerState], None] | None = None,
    ) -> None:
        """``layout``: vector names and lengths. ``sizes [N]``: examples a client.

        ``denominator``: what the sum is divided by, instead of the summed weight (which is then not sent).
        ``perturb``: called with the server's state before the sum leaves this rank, to add its part of the noise or
        to give a rule what the server remembers for it.
        """
        self._shown = False
        self.layout, self.reduce, self.sizes, self.comm = dict(layout), reduce, sizes, comm
        self.examples = int(sizes.sum())
        self.tally, self.denominator, self.perturb = tally, denominator, perturb or (lambda server: None)

    def first(self, error: Exception) -> Exception | None:
        """``error`` if it is the first: a mistake in an algorithm fails every client alike, one traceback is enough."""
        shown, self._shown = self._shown, True
        return None if shown else error

    def open(self, cohort: Cohort, server: ServerState) -> Inbox:
        """Begin a round: an empty sum for ``cohort``."""
        return Inbox(self, cohort, server)


class Inbox:
    """One round's running sum on this rank. A client that fails costs its own contribution, not the round."""

    def __init__(self, pipeline: Pipeline, cohort: Cohort, server: ServerState) -> None:
        self._pipeline, self._cohort, self._server = pipeline, cohort, server
        self._failures = Failures()
        examples, ranks = pipeline.sizes[list(cohort.ids)], pipeline.comm.world_size
        self._tally = pipeline.tally(cohort, examples, ranks)
        total_weight = float(examples.clamp(min=1).sum())
        pipeline.reduce.open(sum(pipeline.layout.values()), 1 + ranks + self._tally.size, total_weight)
        tail = pipeline.reduce.tail
        self._weight, self._checksum = tail[0], tail[1 : 1 + ranks]
        self._tally.bind(tail[1 + ranks :])
        self._began = time.perf_counter()

    def blocks(self, ids: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
        """``ids`` in blocks of at most ``width``; those of a block that failed come again, one by one."""
        for block in blocks(ids, width):
            self._again: tuple[int, ...] = ()
            yield block
            yield from ((k,) for k in self._again)

    @contextmanager
    def tolerate(self, ids: Sequence[int]) -> Iterator[None]:
        """Turn an exception of a client's own work into weight 0; `mean` warns of it.

        That of a block has its clients tried again alone: one that fails costs its own contribution only.
        """
        try:
            yield
        except CommError:
            raise
        except Exception as error:
            if len(ids) > 1:
                self._again = tuple(ids)
                return
            self._failures.add(ids, f"{type(error).__name__}: {error}", error)

    def add(self, ids: Sequence[int], update: Update, result: LocalResult) -> list[int]:
        """Accumulate the updates of the clients ``ids``; what is not finite is left out.

        Which rows were taken: only those clients took part, and only their state may change.
        """
        rows = update.pack(self._pipeline.layout)
        largest = torch.linalg.vector_norm(rows, dim=1)  # no entry is larger; NaN if one is
        if not (largest <= self._pipeline.reduce.bound).all():
            largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
        limit = self._pipeline.sizes[list(ids)].clamp(min=1)
        weight = update.weight
        usable = ((largest <= self._pipeline.reduce.bound).cpu() & (weight >= 0) & (weight <= limit)).tolist()
        keep = [row for row, good in enumerate(usable) if good]
        for row, (k, good) in enumerate(zip(ids, usable, strict=True)):
            if not good:
                self._failures.add([k], self._why(float(largest[row]), float(weight[row])))
        if len(keep) < len(ids):
            rows, weight = rows[keep], weight[keep]
        if not keep:
            return keep
        self._pipeline.reduce.add(rows, weight, [ids[row] for row in keep])
        if self._pipeline.denominator is None:
            self._weight += weight.sum()
        kept = replace(result, steps=result.steps[keep], loss=result.loss[keep], accuracy=result.accuracy[keep])
        self._tally.add([ids[row] for row in keep], kept)  # last: what the sum refused is a failure
        return keep

    def mean(self) -> tuple[Mean, Report]:
        """The weighted mean over all ranks' clients, by the round's one all_reduce. Warns of this rank's failures.

        Raises CommError if the ranks did not start the round from the same model.
        """
        pipeline, comm = self._pipeline, self._pipeline.comm
        seconds = time.perf_counter() - self._began
        self._warn()
        self._tally.close(seconds, comm.rank)
        self._tally.explain(self._failures.counts())
        self._checksum[comm.rank] = checksum(self._server.w)
        pipeline.perturb(self._server)
        try:
            total = pipeline.reduce.total(comm, self._cohort.round)
        except RoundBurnt as reason:
            log.warning("round %d was aborted; the model is unchanged: %s", self._cohort.round + 1, reason)
            return Mean({}, 0.0, 0, pipeline.examples), self._tally.burnt(seconds)
        self._compare(self._checksum)
        weight = float(self._weight) if pipeline.denominator is None else pipeline.denominator
        mean = (total / weight if weight else torch.zeros_like(total)).to(self._server.w.dtype)
        parts = dict(zip(pipeline.layout, mean.split(list(pipeline.layout.values())), strict=True))
        count, report = self._tally.report()
        return Mean(parts, weight, count if weight else 0, pipeline.examples), report

    def _compare(self, checksums: Tensor) -> None:
        seen = checksums.tolist()
        odd = [r for r in self._pipeline.comm.members if seen[r] != seen[0]]
        if odd:
            raise CommError(f"round {self._cohort.round + 1}: the model on rank(s) {odd} is not the one on rank 0")

    def _warn(self) -> None:
        """One line per reason, and once per run the traceback: a mistake in an algorithm fails every client alike."""
        for group in self._failures:
            error = self._pipeline.first(group.error) if group.error else None
            log.warning("round %d: %s", self._cohort.round + 1, group, exc_info=error)

    def _why(self, largest: float, weight: float) -> str:
        if not isfinite(largest):
            return "its update is not finite; client.optimizer.lr may be too large"
        if largest > self._pipeline.reduce.bound:
            return f"its update exceeds {self._pipeline.reduce.bound:g}"
        return f"its weight {weight:g} is not between 0 and its number of examples"


def checksum(w: Tensor) -> int:
    """24 bits of ``w``'s bytes: exact in float32, so that it can ride in the round's collective."""
    words = w.detach().contiguous().view(torch.int32)
    return int(words.sum(dtype=torch.int64)) % (2**24 - 3)  # a prime: no power of two vanishes, so no flipped bit does
