"""Start the ranks of a program by torchrun's own machinery, without what torchrun prints."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .. import launched
from .interrupt import Interrupted, asked_by
from .machines import Failure, Machines, launch_here, log_folder, rank_command


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
    os.environ[launched.LAUNCHER] = str(os.getpid())
    for number in asked_by():  # until the ranks have started, when torch has handlers of its own
        signal.signal(number, _stop)
    if machines.count > 1:
        return launch_here(module, words, machines)
    # a restart must not find the addresses of the last attempt in the agent's store
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    program, *rest = rank_command(module, words)
    with log_folder() as logs:
        try:
            elastic_launch(_config(machines, logs), program)(*rest)
        except ChildFailedError as error:
            first, _ = error.get_first_failure()
            return in_order({rank: Failure.of(failure) for rank, failure in error.failures.items()}, first)
        except SignalException as received:
            raise Interrupted(received.sigval.name) from None
    return {}


def in_order(failed: Mapping[int, Failure], first: int) -> dict[int, Failure]:
    """Return ranks that ``failed`` with the cause in front: one that a signal ended, else who was seen to fail first.

    One that a signal ended has not failed because of another; the other's failure may be seen first all the same.
    """
    ended = {rank for rank, failure in failed.items() if failure.code < 0 and failure.code != -signal.SIGTERM}
    return {rank: failed[rank] for rank in sorted(failed, key=lambda rank: (rank not in ended, rank != first))}


def _config(machines: Machines, logs: DefaultLogsSpecs) -> LaunchConfig:
    """One machine meets itself at a free port of its loopback interface."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=machines.ranks,
        run_id=machines.id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=machines.max_restarts,
        logs_specs=logs,
        signals_to_handle=",".join(number.name for number in asked_by()),
    )


def _stop(number: int, frame: object) -> NoReturn:
    raise Interrupted(signal.Signals(number).name)
