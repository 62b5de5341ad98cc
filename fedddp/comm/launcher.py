"""Start the ranks of a program by torchrun's own machinery, without what torchrun prints."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .. import launched
from ..errors import first_line
from .heartbeat import CommError
from .interrupt import Interrupted, asked_by

NAME = "fedddp/launch"  # of the key in the store
MEETING = timedelta(seconds=900)  # that machines wait for each other, as with torchrun


@dataclass(frozen=True)
class Machines:
    """The machines that ranks start on, and which of them this is.

    Attributes:
        ranks: ranks on this machine.
        count: number of machines.
        number: the number of this machine.
        master: HOST:PORT where they meet, on machine 0; of one machine empty.
        max_restarts: how often all ranks are started again after one failed.
        id: a name of this start, that of machine 0.
    """

    ranks: int
    count: int = 1
    number: int = 0
    master: str = ""
    max_restarts: int = 0
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class Failure:
    """The end of a rank that failed: its exit code, minus the signal where one ended it, and its error, if known."""

    code: int
    error: str = ""


def launch(module: str, words: Sequence[str], machines: Machines) -> dict[int, Failure]:
    """Start ``python -m module words`` as every rank of this machine, and wait for their end.

    Returns:
        The ranks that failed, the one that failed first in front. Empty if all are done.

    Raises:
        CommError: the machines did not meet.
        Interrupted: this process was asked to stop. The ranks were asked in turn, and given 30 s.
    """
    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
        logging.getLogger(name).propagate = False
    alone = machines.count == 1  # a restart must not find the addresses of the last attempt in the agent's store
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = str(int(alone))
    os.environ[launched.LAUNCHER] = str(os.getpid())
    for number in asked_by():  # until the ranks have started, when torch has handlers of its own
        signal.signal(number, _stop)
    store = None if alone else _store(machines)
    program, *rest = rank_command(module, words)
    with tempfile.TemporaryDirectory(
        prefix="fedddp-launch-", ignore_cleanup_errors=True
    ) as logs:  # torch leaves its own
        try:
            elastic_launch(_config(machines, store, logs), program)(*rest)
        except ChildFailedError as error:
            first, _ = error.get_first_failure()
            ranks = [first, *(rank for rank in error.failures if rank != first)]
            return {rank: _failure(error.failures[rank]) for rank in ranks}
        except SignalException as received:
            raise Interrupted(received.sigval.name) from None
    return {}


def _failure(found: ProcessFailure) -> Failure:
    """A rank that wrote no error file has a message that torch made up."""
    said = found.error_file_data.get("message", "") if Path(found.error_file).is_file() else ""
    return Failure(found.exitcode, said.get("message", "") if isinstance(said, dict) else said)


def rank_command(module: str, words: Sequence[str]) -> list[str]:
    """The command line of a rank: ``python -m module words``."""
    safe = ["-P"] if sys.flags.safe_path else []
    return [sys.executable, *safe, "-u", "-m", module, *words]


def _store(machines: Machines) -> dist.Store:
    """The store at ``master``, where the machines learn a name of this start. Raises CommError if they do not meet."""
    host, _, port = machines.master.rpartition(":")
    first = machines.number == 0
    try:
        store = dist.TCPStore(host, int(port), machines.count, first, MEETING, multi_tenant=True)
        if first:
            store.set(NAME, machines.id)
        store.wait([NAME], MEETING)
    except RuntimeError as error:
        raise CommError(f"the machines did not meet at {machines.master} ({first_line(error)})") from None
    return store


def _config(machines: Machines, store: dist.Store | None, logs: str) -> LaunchConfig:
    """One machine meets itself at a free port of its loopback interface, several at ``master``; ``logs``: a folder."""
    alone = store is None
    return LaunchConfig(
        min_nodes=machines.count,
        max_nodes=machines.count,
        nproc_per_node=machines.ranks,
        run_id=machines.id if alone else store.get(NAME).decode(),
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else machines.master,
        rdzv_configs={} if alone else {"rank": machines.number},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=machines.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        signals_to_handle=",".join(number.name for number in asked_by()),
    )


def _stop(number: int, frame: object) -> NoReturn:
    raise Interrupted(signal.Signals(number).name)
