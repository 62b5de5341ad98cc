"""Start the ranks of one of several machines: the machines meet at a store on the first of them, and end together.

Not by torchrun's agents: these wait without a limit for a store that can no longer be reached. Here the ranks find out
by themselves (`heartbeat`, `store`) and end, and with them this machine's part.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from ..errors import first_line
from .heartbeat import CommError
from .interrupt import Interrupted, asked_by
from .store import TimedStore, announced, opened

NAME = "fedddp/launch"  # of the key in the store
ENDING = 10.0  # seconds that machine 0 waits for the others at the end, so that their ranks can still ask the store
log = logging.getLogger("fedddp")


@dataclass(frozen=True)
class Machines:
    """The machines that ranks start on, and which of them this is.

    Attributes:
        ranks: ranks on this machine, and on each other one.
        count: number of machines.
        number: the number of this machine; None to get one as the machines come; not of machine 0.
        master: HOST:PORT where they meet, on machine 0; of one machine empty.
        max_restarts: how often all ranks are started again after one failed; on one machine.
        id: a name of this start, that of machine 0.
        patience: seconds that they wait for each other at the start.
        timeout: seconds that a call of the store may take.
    """

    ranks: int
    count: int = 1
    number: int | None = 0
    master: str = ""
    max_restarts: int = 0
    patience: float = 900.0
    timeout: float = 120.0
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class Failure:
    """The end of a rank that failed: its exit code, minus the signal where one ended it, and its error, if known."""

    code: int
    error: str = ""

    @classmethod
    def of(cls, found: ProcessFailure) -> Self:
        """A rank that wrote no error file has a message that torch made up."""
        said = found.error_file_data.get("message", "") if Path(found.error_file).is_file() else ""
        return cls(found.exitcode, said.get("message", "") if isinstance(said, dict) else said)


def rank_command(module: str, words: Sequence[str]) -> list[str]:
    """The command line of a rank: ``python -m module words``."""
    safe = ["-P"] if sys.flags.safe_path else []
    return [sys.executable, *safe, "-u", "-m", module, *words]


@contextmanager
def log_folder() -> Iterator[DefaultLogsSpecs]:
    """A folder for what torch keeps of the ranks, removed behind them: torch would leave one of its own."""
    with tempfile.TemporaryDirectory(prefix="fedddp-launch-", ignore_cleanup_errors=True) as folder:
        yield DefaultLogsSpecs(log_dir=folder)


def launch_here(module: str, words: Sequence[str], machines: Machines) -> dict[int, Failure]:
    """Start this machine's ranks as soon as all machines are there; see `fedddp.comm.launcher.launch`."""
    try:
        store = _meeting(machines)
        number, name = _joined(store, machines)
    except (RuntimeError, OSError) as error:
        cause = error if isinstance(error, CommError) else first_line(error)
        raise CommError(f"the machines did not meet at {machines.master}: {cause}") from None
    code = 1
    try:
        failed = _ranks(module, words, machines, number, name)
        code = next((failure.code for failure in failed.values()), 0)
        return failed
    finally:
        _leave(store, machines, number, code)


def _meeting(machines: Machines) -> TimedStore:
    """The store at ``master``."""
    at, limit = machines.master, f"up to {machines.patience:g} s (--join-timeout)"
    with announced(lambda: f"waiting {limit} for machine 0 at {at}: start the same command there"):
        return opened(at, machines.patience, f"the store at {at}, which machine 0 holds,", holds=machines.number == 0)


def _joined(store: TimedStore, machines: Machines) -> tuple[int, str]:
    """This machine's number and the name of this start, when all machines are there."""
    number = machines.number
    if number == 0:
        store.set(NAME, machines.id)
    if number is None:
        number = store.add("machines", 1)
    if number >= machines.count:
        raise CommError(
            f"all {machines.count} have come to this start before; once it has ended there, start again on each"
        )
    if store.add(f"machine/{number}", 1) > 1:
        raise CommError(f"machine {number} has come before; start each of {machines.count} once, with its --node-rank")
    deadline = time.monotonic() + machines.patience

    def missing() -> str:
        gone = [str(k) for k in range(machines.count) if not store.check([f"machine/{k}"])]
        return f"machine {', '.join(gone)} of {machines.count} did not come" if gone else ""

    said = f"; waiting up to {machines.patience:g} s (--join-timeout): start the same command there"
    with announced(lambda: missing() + said):
        while gone := missing():
            if time.monotonic() > deadline:
                raise CommError(f"{gone} within {machines.patience:g} s (--join-timeout)")
            time.sleep(0.1)
    name = store.get(NAME).decode()
    store.limit(machines.timeout)
    return number, name


def _ranks(module: str, words: Sequence[str], machines: Machines, number: int, name: str) -> dict[int, Failure]:
    """Start the ranks of machine ``number`` and wait for their end. Those that failed, the first in front."""
    host, _, port = machines.master.rpartition(":")
    shared = {
        **os.environ,
        **{"MASTER_ADDR": host.strip("[]"), "MASTER_PORT": port, "WORLD_SIZE": str(machines.count * machines.ranks)},
        **{
            "LOCAL_WORLD_SIZE": str(machines.ranks),
            "TORCHELASTIC_RUN_ID": name,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        },
    }
    at = number * machines.ranks  # the first rank of this machine
    envs = {k: {**shared, "RANK": str(at + k), "LOCAL_RANK": str(k)} for k in range(machines.ranks)}
    program, *rest = rank_command(module, words)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in asked_by())
    with log_folder() as logs:
        programs = dict.fromkeys(envs, tuple(rest))
        started = start_processes("fedddp", program, programs, envs, logs)
        try:
            ended = started.wait(period=0.1)
        except SignalException as received:
            started.close(received.sigval)
            raise Interrupted(received.sigval.name) from None
        failures = sorted(ended.failures.items(), key=lambda item: item[1].timestamp) if ended else []
        return {at + local: Failure.of(failure) for local, failure in failures}


def _leave(store: TimedStore, machines: Machines, number: int, code: int) -> None:
    """Report this machine's end. Machine 0, which holds the store, gives the others time to end, too."""
    keys, deadline = [f"ended/{k}" for k in range(machines.count)], time.monotonic() + min(ENDING, machines.timeout)
    with suppress(RuntimeError, KeyboardInterrupt, SignalException):
        store.set(f"ended/{number}", str(code))
        while number == 0 and not store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.05)
    store.close()
