"""A federation of connected ranks that is ready to train, and how its run ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..checkpoints.durable import WriteError
from ..checkpoints.run_folder import RunFolder
from ..checkpoints.saved import exported_sums, vector_sha256
from ..comm import CommError, Purpose, interrupt
from ..errors import OWN_CODE, NothingLearned
from ..federation import Federation, federate
from ..telemetry import Metrics, Telemetry
from ..types import ServerState
from .prepared import Prepared
from .process import ProcessState
from .remarks import caveat

log = logging.getLogger("fedddp")


@dataclass(frozen=True)
class Experiment:
    """A federation that is ready to train.

    Attributes:
        federation: the federation; to train by hand, pass ``federation.until(rounds)`` to `fedddp.federate`.
        server: the server's state to train from: w_0, or that of a checkpoint.
        folder: the run folder; None on every rank but 0.
        prepared: the configuration, data and model that the federation was assembled from.
        owns_comm: whether closing ends the connection to the other ranks. A connection that the caller made stays.
        before: the state of the process to return to at the end, if any.
    """

    federation: Federation
    server: ServerState
    folder: RunFolder | None
    prepared: Prepared
    owns_comm: bool = True
    before: ProcessState | None = None

    def train(self) -> tuple[ServerState, Metrics]:
        """Train to the last round and end the run.

        Returns:
            The last state of the server, and the content of ``summary.json``.

        Raises:
            NothingLearned: no client contributed to any round.
            CommError: another rank was lost.
        """
        with self.ending():
            server = federate(self.federation, self.server)
            check_learned(self.federation.telemetry)
            self.federation.comm.barrier(Purpose.DONE)
            summary = self.summary(server)
            self.close(summary)
        return server, summary

    def summary(self, server: ServerState) -> Metrics:
        """Return the content of ``summary.json`` for a run that ended with ``server``."""
        p, guarantee = self.prepared, self.federation.budget.guarantee
        return self.federation.telemetry.summary(
            **({"privacy": guarantee.text() + caveat(p.config)} if guarantee else {}),
            model_sha256=vector_sha256(server.w),
            **(exported_sums(self.folder.path) if self.folder else {}),
            num_parameters=p.spec.num_trainable,
            world_size=p.place.world_size,
            num_clients=p.data.num_clients,
        )

    def close(self, summary: Metrics | None = None) -> None:
        """End the run in agreement with the other ranks: close its files, lift the guard, leave the process group."""
        self.federation.telemetry.close(summary)
        self._restore()
        if self.owns_comm:
            self.federation.comm.close()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the run if the block fails: write its status, and the last finished round if it was interrupted.

        The other ranks may be lost, so nothing is sent; the process group stays as it is.
        """
        try:
            with interrupt.explaining(CommError):
                yield
        except BaseException as error:
            self._failed(error)
            raise

    def _failed(self, error: BaseException) -> None:
        written = None if isinstance(error, OWN_CODE) else self._flushed()
        if self.folder:
            self.folder.ended(error, **({} if written is None else {"round": written}))
        self.federation.telemetry.abandon()
        self._restore()
        if self.owns_comm:
            self.federation.comm.release()
        if self.folder and written is not None:
            reason = str(error) or type(error).__name__
            log.warning("%s: stopped after round %d; continue with --run.resume=auto", reason, written)

    def _flushed(self) -> int:
        """Write the last finished round, if it is not written, and return the number of the last written one."""
        try:
            return self.federation.checkpoints.flush(patience=3.0)
        except WriteError as error:
            log.warning("%s", error)
            return self.federation.checkpoints.written

    def _restore(self) -> None:
        self.federation.checkpoints.close()
        self.federation.comm.guard = None
        if self.before:
            self.before.restore()


def check_learned(telemetry: Telemetry) -> None:
    """Raise NothingLearned, with the most frequent reason, if no client contributed to any round."""
    if not telemetry.nothing_learned:
        return
    if not telemetry.history:
        raise NothingLearned(
            "privacy.target_epsilon: is less than the first round alone would cost; nothing was trained. Use a larger "
            "privacy.noise_multiplier, or leave it out, so that it is found for the target"
        )
    failures, rounds = telemetry.failures, len(telemetry.history)
    reason, count = max(failures.items(), key=lambda item: item[1], default=("none was sampled", 0))
    raise NothingLearned(
        f"every client failed in every round, so training stopped after round {rounds}; the warnings above say why: "
        f"{count} x {reason}"
    )
