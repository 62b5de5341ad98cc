"""A federation of connected ranks that is ready to train, what it logs at start, and how its run ends."""

import ctypes
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from ..attacks import NoAttack
from ..checkpoints.durable import WriteError
from ..checkpoints.run_folder import RunFolder
from ..checkpoints.saved import exported_sums, vector_sha256
from ..comm import CommError, Purpose, interrupt
from ..config import ResolvedConfig, flatten, to_dict
from ..errors import OWN_CODE, NothingLearned
from ..federation import Federation, federate
from ..privacy import curve, zcdp
from ..telemetry import Metrics, SideWork, Telemetry
from ..types import ServerState
from .banner import banner
from .levels import level_for
from .prepared import Prepared

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGEST_BLOCK = (2**28, 2**25)
"""Bytes of the largest block that is kept; older versions of glibc accept no more than 32 MB.

Larger ones go back to the system: between them the heap would keep what no later vector of a large model fits into.
"""
log = logging.getLogger("fedddp")


@dataclass(frozen=True)
class ProcessState:
    """The number of torch's threads and the current GPU (None where no GPU is in use)."""

    threads: int
    gpu: int | None

    @classmethod
    def current(cls) -> Self:
        """Return the state as it is now."""
        gpu = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return cls(torch.get_num_threads(), gpu)

    def restore(self) -> None:
        """Return to this state."""
        torch.set_num_threads(self.threads)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.set_device(self.gpu or 0)


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks instead of returning them to the system; return whether it will.

    The system clears each page that it hands out: a tensor of megabytes, made and freed in every batch, costs more in
    page faults than in arithmetic. Local training gains 15%, evaluation in large batches up to 40%. Results do not
    change. The setting lasts until the process ends, since glibc can neither read nor reset it; the process may keep
    more memory than it uses.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_BLOCK)
    return kept and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


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

    def train(self, survives: tuple[type[Exception], ...] = ()) -> tuple[ServerState, Metrics]:
        """Train to the last round and end the run.

        Args:
            survives: errors after which the run goes on in another experiment; see `suspend`.

        Returns:
            The last state of the server, and the content of ``summary.json``.

        Raises:
            NothingLearned: no client contributed to any round.
            CommError: another rank was lost.
        """
        with self.ending(survives):
            self._announce()
            server = federate(self.federation, self.server)
            check_learned(self.federation.telemetry, self.prepared.data.num_clients)
            self.federation.comm.barrier(Purpose.DONE)
            summary = self.summary(server)
            self.close(summary)
        return server, summary

    def _announce(self) -> None:
        """Print what is about to be trained, where progress is printed."""
        if self.folder and not self.prepared.place.attempt and self.prepared.config.telemetry.progress != "off":
            with SideWork()("banner"):
                print(banner(self), flush=True)

    def summary(self, server: ServerState) -> Metrics:
        """Return the content of ``summary.json`` for a run that ended with ``server``."""
        p, guarantee = self.prepared, self.federation.budget.guarantee
        return self.federation.telemetry.summary(
            **({"privacy": guarantee.text() + caveat(p.config), **self._privacy()} if guarantee else {}),
            model_sha256=vector_sha256(server.w),
            **(exported_sums(self.folder.path) if self.folder else {}),
            num_parameters=p.spec.num_trainable,
            world_size=p.place.world_size,
            num_clients=p.data.num_clients,
        )

    def _privacy(self) -> Metrics:
        """Return epsilon by delta, None where it has no bound, and the rho of zCDP."""
        released = self.federation.budget.composition()
        spent = curve(released, self.prepared.config.privacy.accountant)
        finite = {delta: epsilon if math.isfinite(epsilon) else None for delta, epsilon in spent.items()}
        return {"epsilon_by_delta": finite, "zcdp_rho": zcdp(released)}

    def close(self, summary: Metrics | None = None) -> None:
        """End the run in agreement with the other ranks: close its files, lift the guard, leave the process group."""
        with interrupt.at_disk():  # however long it takes to draw and write the last pages
            self.federation.telemetry.close(summary)
        if self.folder:
            self.folder.release()
        self._restore()
        if self.owns_comm:
            self.federation.comm.close()

    @contextmanager
    def ending(self, survives: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """End the run if the block fails, however: write the last finished round, what is shown of it, and the cause.

        ``survives``: errors that do not end it.
        The other ranks may be lost, so nothing is sent; the process group stays as it is.
        """
        with interrupt.ending(self._failed, survives), interrupt.explaining(CommError):
            yield

    def suspend(self) -> Sequence[ServerState]:
        """Close the files of a run that goes on in another experiment. The server's states after the last rounds."""
        self.federation.telemetry.abandon()
        self.federation.checkpoints.abandon()
        self._restore()
        return tuple(self.federation.checkpoints.recent)

    def _failed(self, error: BaseException) -> None:
        written = self._flushed(error)
        self.federation.telemetry.abandon()
        if self.folder:
            self.folder.ended(error, **({"round": written} if written or not isinstance(error, OWN_CODE) else {}))
        self._restore()
        if self.owns_comm:
            self.federation.comm.release()
        if self.folder and not isinstance(error, OWN_CODE):
            reason = str(error) or type(error).__name__
            log.warning("%s: stopped after round %d; continue with --run.resume=auto", reason, written)

    def _flushed(self, error: BaseException) -> int:
        """Write the last finished round, if it is not written, and return the number of the last written one."""
        if isinstance(error, WriteError):  # where nothing can be written, nothing more is tried
            return self.federation.checkpoints.written
        try:
            return self.federation.checkpoints.flush(patience=3.0)
        except WriteError as error:
            log.warning("%s", error)
            return self.federation.checkpoints.written

    def _restore(self) -> None:
        self.federation.checkpoints.close()
        self.federation.comm.guard = None
        self.federation.comm.keep_discreet(False)
        if account := self.federation.budget.account:
            account.release()
        if self.before:
            self.before.restore()


def check_learned(telemetry: Telemetry, population: int) -> None:
    """Raise NothingLearned, with the most frequent reason, if no client contributed to any or the last rounds."""
    if not telemetry.nothing_learned and not telemetry.stalled(population):
        return
    if not telemetry.history:
        raise NothingLearned(
            "privacy.target_epsilon: is less than the first round alone would cost; nothing was trained. Use a larger "
            "privacy.noise_multiplier, or leave it out, so that it is found for the target"
        )
    failures, rounds = telemetry.failures, len(telemetry.history)
    reason, count = max(failures.items(), key=lambda item: item[1], default=("none was sampled", 0))
    if not telemetry.nothing_learned:
        raise NothingLearned(
            f"no client contributed to the last {telemetry.barren} rounds, so training stopped after round {rounds}; "
            f"the model is that of round {rounds - telemetry.barren}; the warnings say why: {count} x {reason}"
        )
    raise NothingLearned(
        f"every client failed in every round, so training stopped after round {rounds}; the warnings above say why: "
        f"{count} x {reason}"
    )


def start_messages(config: ResolvedConfig) -> Iterator[str]:
    """Yield what a reader of the log has to know about privacy, attacks and the population, a line each."""
    keys = config.privacy
    if config.data.name != "parts":
        yield (
            f"simulation: every rank can read all of {config.data.name}; where ranks must not see each other's, "
            "divide it first (fedddp split)"
        )
    if keys.secure_aggregation.enabled and not keys.secure_aggregation.roster:
        yield "secure aggregation without a roster: keys are made at start, and nobody is authenticated"
    level = level_for(config.privacy)
    if level.unit:
        noise = f"clip {keys.clip:g}, sigma {config.noise_multiplier:g}{caveat(config)}"
        yield f"private at {level.unit} level: {noise}"
    if level.clips_updates and not keys.secure_aggregation.enabled:
        yield (
            "client level without secure aggregation: epsilon is that of the sums; a neighbour in the ring sees one "
            "rank's, which has that rank's part of the noise only"
        )
    if config.attack != NoAttack():
        yield f"attack {flatten(to_dict(config))['attack.name']}: {config.adversary}"
        if config.evaluate.personal_every:
            benign = config.num_clients - config.attack.num_clients
            yield f"personal accuracies are of the {benign} benign clients, those with two examples or more"
    if config.num_clients == 1:
        yield (
            "one client owns all training examples, so nothing is federated; start torchrun --nproc_per_node=4 for a "
            "client per rank, or set data.partition.num_clients"
        )


def caveat(config: ResolvedConfig) -> str:
    """Return what has to stand beside every privacy figure of a run whose noise can be predicted; else nothing."""
    seeded = config.privacy.randomness == "seeded"
    return "; but privacy.randomness=seeded: this noise can be predicted and guarantees nothing" if seeded else ""
