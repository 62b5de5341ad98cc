"""How a command runs and ends, in one place: its output, requests to stop, errors, and exit codes."""

import logging
import os
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext

from ..checkpoints.durable import WriteError
from ..comm import CommError, interrupt
from ..comm.interrupt import Interrupted, leave
from ..comm.slurm import srun_variables
from ..comm.world import Place
from ..config import Request, one_line, parse
from ..errors import DONE, FAILED, INTERRUPTED, USAGE, Diverged, NothingLearned, UsageError
from ..secure.identity import IdentityError
from ..telemetry import lasting_output, log_to_stderr

log = logging.getLogger("fedddp")


@lasting_output()
def ended(run: Callable[[], int | None], *, stops: bool = False, ranks: bool = False) -> int:
    """Run a command to its end.

    Args:
        run: the command; what it returns is the exit code, None for 0.
        stops: whether it looks for requests to stop by itself (`fedddp.comm.interrupt.check`). Ctrl-C ends others at
            once.
        ranks: whether this process may be one of several that srun started, whose variables are read then.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted.
    """
    try:
        if ranks:
            os.environ.update(srun_variables(os.environ))
        place = Place.from_env()
    except UsageError as error:
        log_to_stderr(0, 1)
        return _usage(str(error), Place())
    log_to_stderr(place.rank, place.world_size)
    with interrupt.handled() if stops else nullcontext():
        code = _guarded(run, place)
    if place.world_size > 1 and code != DONE:
        leave(code)  # not through the destructors of a process group that others may still wait in
    return code


def asked(args: Namespace) -> Request:
    """The configuration on a command line. What short forms in it stand for is said, by one rank."""
    request = parse(args.words, args.options)
    if request.short and os.environ.get("RANK", "0") == "0":
        log.info("%s", request.short)
    return request


def _guarded(run: Callable[[], int | None], place: Place) -> int:
    """Run, and turn what went wrong into a line on stderr and an exit code."""
    try:
        return run() or DONE
    except UsageError as error:
        return _usage(one_line(str(error)), place)
    except (CommError, Diverged, NothingLearned, WriteError, IdentityError) as error:
        log.error("%s", error)
        return FAILED
    except Interrupted as request:
        if place.rank == 0:  # the others would hide a mistake that this rank refused
            log.warning("%s: stopped", request)
        return INTERRUPTED
    except KeyboardInterrupt:
        log.warning("SIGINT: stopped")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED


def _usage(message: str, place: Place) -> int:
    """One line from one rank: the others give it time to speak before their exit ends it, or its exit ends them.

    Rank 0 speaks at once, the first rank of another machine 4 s later, any other rank, whose own mistake it must be (a
    key that is not its own), 2 s after that.
    """
    if place.rank == 0:
        log.error("%s", message)
        return USAGE
    try:
        for _ in range(60 if place.local_rank else 40):
            interrupt.check()
            time.sleep(0.1)
        log.error("%s", message)
    except Interrupted:
        pass
    return USAGE
