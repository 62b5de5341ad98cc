"""Aggregate the clients' updates to the server's mean, by one collective per round.

The buffer of that collective holds the weighted sum of the updates and, behind it, the summed weight, one slot per rank
for the checksum of the model it started from, and what the round reports besides (`Tally`). A slot is written by one
rank and zero elsewhere, so that the sum gathers.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, isfinite

import torch
from torch import Tensor

from ..comm import Comm, CommError, interrupt
from ..errors import OWN_CODE, UsageError, check_shapes, out_of_memory
from ..sampling import blocks
from ..types import Cohort, LocalResult, Mean, Report, RoundAborted, ServerState, Update
from .limit import NormLimit
from .reduce import Reduce
from .tally import AT_ONCE, ClientTally, Tally

log = logging.getLogger("fedddp")


class Pipeline:
    """What every round's aggregation has in common.

    Args:
        layout: vector names of an update and their lengths.
        reduce: the sum over clients and ranks.
        sizes: examples of each client, [N].
        comm: the ranks.
        tally: what a round reports besides its mean.
        denominator: what the sum is divided by, instead of the summed weight (which is then not sent).
        perturb: called with the server's state before the sum leaves this rank, to add its part of the noise or to
            give a rule what the server remembers for it.
        begin: called with the server's state when a round is opened.
        limit: how long an update may be; by default as long as can be summed.
        deadline: seconds that a round's clients have on a rank.
    """

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
        begin: Callable[[ServerState], None] | None = None,
        limit: NormLimit | None = None,
        deadline: float = inf,
    ) -> None:
        self._shown, self.told, self.limit = False, set[str](), limit or NormLimit()
        self.layout, self.reduce, self.sizes, self.comm = dict(layout), reduce, sizes, comm
        self.examples = int(sizes.sum())
        self.tally, self.denominator, self.perturb = tally, denominator, perturb or (lambda server: None)
        self.begin, self.deadline = begin or (lambda server: None), deadline

    def first(self, error: BaseException) -> BaseException | None:
        """``error`` if it is the first: a mistake in an algorithm fails every client alike, one traceback is enough."""
        shown, self._shown = self._shown, True
        return None if shown else error

    def open(self, cohort: Cohort, server: ServerState) -> Inbox:
        """Begin a round: an empty sum for ``cohort``."""
        self.begin(server)
        return Inbox(self, cohort, server)


@dataclass
class FailedClients:
    """Clients that failed for one reason, and the exception of the first of them, if it was one."""

    reason: str
    error: BaseException | None
    clients: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if len(self.clients) == 1:
            return f"client {self.clients[0]} failed; its update is ignored: {self.reason}"
        failed = f"{len(self.clients)} clients failed; their updates are ignored"
        return f"{failed}: {self.reason}, first client {self.clients[0]}"


class Inbox:
    """One round's running sum on this rank. A client that fails costs its own contribution, not the round."""

    def __init__(self, pipeline: Pipeline, cohort: Cohort, server: ServerState) -> None:
        self._pipeline, self._cohort, self._server = pipeline, cohort, server
        self._failures: dict[str, FailedClients] = {}
        self._drawn = frozenset(cohort.ids)
        examples, ranks = pipeline.sizes[list(cohort.ids)], pipeline.comm.world_size
        self._tally = pipeline.tally(cohort, examples, ranks)
        self._most = total_weight = float(examples.clamp(min=1).sum())
        pipeline.reduce.open(sum(pipeline.layout.values()), 1 + ranks + self._tally.size, total_weight)
        tail = pipeline.reduce.tail
        self._weight, self._checksum = tail[0], tail[1 : 1 + ranks]
        self._tally.bind(tail[1 + ranks :])
        self._began, self._ends = time.perf_counter(), time.monotonic() + pipeline.deadline

    def blocks(self, ids: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
        """``ids`` in blocks of at most ``width``; clients of a block that failed come again, one by one."""
        for block in blocks(ids, width):
            self._again: tuple[int, ...] = ()
            yield block
            yield from ((k,) for k in self._again)

    @contextmanager
    def tolerate(self, ids: Sequence[int]) -> Iterator[None]:
        """Turn an exception of a client's own work into weight 0; `mean` warns of it.

        If a block fails, its clients are tried again alone, so that only the failing one is lost. A UsageError, for a
        mistake in the algorithm, ends the run.
        """
        interrupt.deadline = self._ends  # a client that begins after it is late at its first safe point
        try:
            yield
        except (CommError, UsageError):
            raise
        except interrupt.Late:
            for k in ids:
                self._failed(k, f"it was not done within cohort.deadline={self._pipeline.deadline:g} s")
        except OWN_CODE as error:
            memory = out_of_memory(error)
            if len(ids) > 1:
                self._again = tuple(ids)
                if memory and memory not in self._pipeline.told:
                    self._pipeline.told.add(memory)
                    log.warning("%d clients at once: %s; they train one by one (said once)", len(ids), memory)
            elif memory:
                self._failed(ids[0], memory)
            else:
                self._failed(ids[0], f"{type(error).__name__}: {error}", error)
        finally:
            interrupt.deadline = inf

    def _failed(self, client: int, reason: str, error: BaseException | None = None) -> None:
        """Record a failure. Reasons that differ in their numbers only are one, in the first one's words.

        A client outside the cohort cannot fail: it trains for the sake of the time that it takes.
        """
        if client not in self._drawn:
            return
        line = (reason.splitlines() or [""])[0]
        kind = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", line)
        if kind not in self._failures:
            if error is not None:
                traceback.clear_frames(error.__traceback__)  # it can still be printed, and holds no tensors
            self._failures[kind] = FailedClients(line, error)
        self._failures[kind].clients.append(client)

    def add(self, ids: Sequence[int], update: Update, result: LocalResult) -> list[int]:
        """Accumulate the updates of the clients ``ids``; one that is not finite or of another shape is a failure.

        The update of a client outside the cohort has weight 0.

        Returns:
            The rows that were accepted: only these clients took part, and only their state may change.
        """
        try:
            self._check_shapes(len(ids), update, result)
        except UsageError as error:
            for k in ids:
                self._failed(k, str(error))
            return []
        rows = update.pack(self._pipeline.layout)
        lengths = largest = torch.linalg.vector_norm(rows, dim=1)  # no entry is larger; NaN if one is
        if not (largest <= self._pipeline.reduce.bound).all():
            largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
        limit = self._pipeline.sizes[list(ids)].clamp(min=1)
        weight = update.weight.masked_fill(torch.tensor([k not in self._drawn for k in ids]), 0)
        bounded = (largest <= self._pipeline.reduce.bound) & (lengths <= self._pipeline.limit.bound)
        usable = (bounded.cpu() & (weight >= 0) & (weight <= limit)).tolist()
        keep = [row for row, good in enumerate(usable) if good]
        for row, (k, good) in enumerate(zip(ids, usable, strict=True)):
            if not good:
                self._failed(k, self._why(float(largest[row]), float(lengths[row]), float(weight[row])))
        if len(keep) < len(ids):
            rows, weight = rows[keep], weight[keep]
        if not keep:
            return keep
        kept_ids = [ids[row] for row in keep]
        self._pipeline.reduce.add(rows, weight, kept_ids)
        if self._pipeline.denominator is None:
            self._weight += weight.sum()
        kept = replace(result, steps=result.steps[keep], loss=result.loss[keep], accuracy=result.accuracy[keep])
        self._tally.add(kept_ids, kept)  # last: what the sum refused is a failure
        self._tally.uploaded(kept_ids, weight, lengths[keep])
        return [row for row in keep if ids[row] in self._drawn]

    def _check_shapes(self, k: int, update: Update, result: LocalResult) -> None:
        layout = {name: [k, length] for name, length in self._pipeline.layout.items()}
        check_shapes("the upload", update.vectors, layout)
        figures = {"weight": update.weight, "steps": result.steps, "loss": result.loss, "accuracy": result.accuracy}
        check_shapes("the clients'", figures, {name: [k] for name in figures})

    def mean(self) -> tuple[Mean, Report]:
        """The weighted mean over all ranks' clients, by the round's one all_reduce. Warns of this rank's failures.

        Raises:
            CommError: the ranks did not start the round from the same model.
        """
        pipeline, comm = self._pipeline, self._pipeline.comm
        seconds = time.perf_counter() - self._began
        for kind, group in self._failures.items():
            error = pipeline.first(group.error) if group.error else None
            if self._tally.names_failed:
                log.warning("round %d: %s", self._cohort.round + 1, group, exc_info=error)
            elif kind not in pipeline.told:
                pipeline.told.add(kind)
                log.warning("a client failed; its update is ignored (said once): %s", group.reason, exc_info=error)
        self._tally.close(seconds, comm.rank, {group.reason: len(group.clients) for group in self._failures.values()})
        self._checksum[comm.rank] = checksum(self._server.w)
        pipeline.perturb(self._server)
        try:
            total = pipeline.reduce.total(comm, self._cohort.round)
            weight = float(self._weight) if pipeline.denominator is None else pipeline.denominator
            _check_sum(total, weight, self._most if pipeline.denominator is None else inf)
            self._tally.summed(total, weight)
            if self._tally.norms is not None:
                pipeline.limit.check_first(self._tally.norms)
        except RoundAborted as reason:
            log.warning("round %d was aborted; the model is unchanged: %s", self._cohort.round + 1, reason)
            return Mean({}, 0.0, 0, pipeline.examples), self._tally.aborted()
        self._compare_models()
        mean = (total.div_(weight) if weight else total.zero_()).to(self._server.w.dtype)  # in place: one vector less
        parts = dict(zip(pipeline.layout, mean.split(list(pipeline.layout.values())), strict=True))
        count, report = self._tally.report()
        pipeline.limit.learn(report)
        return Mean(parts, weight, count if weight else 0, pipeline.examples), report

    def _compare_models(self) -> None:
        seen = self._checksum.tolist()
        odd = [r for r in self._pipeline.comm.members if seen[r] != seen[0]]
        if odd:
            raise CommError(f"round {self._cohort.round + 1}: the model on rank(s) {odd} is not the one on rank 0")

    def _why(self, largest: float, length: float, weight: float) -> str:
        if not isfinite(largest):
            return "its update is not finite; client.optimizer.lr may be too large"
        if largest > self._pipeline.reduce.bound:
            return f"its update exceeds {self._pipeline.reduce.bound:g}"
        if length > self._pipeline.limit.bound:
            return self._pipeline.limit.why(length)
        return f"its weight {weight:g} is not between 0 and its number of examples"


def _check_sum(total: Tensor, weight: float, most: float) -> None:
    """Raise RoundAborted for a sum that is not finite, or a weight above ``most``: it would stay in the model for good.

    Each rank has checked its own clients' updates (`Inbox.add`), so a rank or its network altered what it sent.
    """
    largest = float(torch.linalg.vector_norm(total, ord=inf)) if total.numel() else 0.0  # NaN if an entry is
    if not (isfinite(largest) and 0 <= weight <= most * (1 + 1e-6) and weight < inf):
        raise RoundAborted(
            f"the sum over all ranks is not what its updates give (largest entry {largest:g}, weight {weight:g} of "
            f"{most:g} at most): a rank or its network altered it. A sum does not show which; check the machines' "
            "memory and network, or start with fewer ranks"
        )


def checksum(w: Tensor) -> int:
    """24 bits of ``w``'s bytes: exact in float32, so that it can be a slot of the round's collective."""
    words = w.detach().contiguous().view(torch.int32)
    total = sum(int(part.sum(dtype=torch.int64)) for part in words.split(AT_ONCE))
    return total % (2**24 - 3)  # a prime: no power of two vanishes, so no flipped bit does
