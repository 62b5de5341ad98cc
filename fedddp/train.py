"""The program: read the configuration, find what is wrong with it, join the other ranks, train.

    torchrun --nproc_per_node=4 -m fedddp.train [FILE.toml ...] [--section.key=value ...]
    python -m fedddp.train                                        # one rank

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted and resumable.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoints.durable import WriteError
from .comm import CommError, interrupt, record
from .comm.interrupt import Interrupted, leave
from .comm.world import SPANS_HOSTS, Place, alone_of_many, check_meeting, spans_hosts
from .config import Config, build, help_text, one_line, parse, read_toml, to_toml
from .errors import NothingLearned, UsageError
from .setup.assemble import connect
from .setup.load import prepare
from .setup.prepared import Prepared
from .setup.resolve import resolve
from .telemetry import lasting_output, log_to_stderr, summary_table

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, interrupt.EXIT_CODE

log = logging.getLogger("fedddp")


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (default: the command line); the exit code."""
    try:
        place = Place.from_env()
    except UsageError as error:
        log_to_stderr(0, 1)
        return _usage(str(error), Place())
    log_to_stderr(place.rank, place.world_size)
    words = list(argv or ())
    if argv is None:
        words = sys.argv[1:]
        if not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
            sys.path.insert(0, "")  # where python -m has it: a console script has its own folder there instead
    with interrupt.handled():
        code = _guarded(words, place)
    if place.world_size > 1 and code != DONE:
        leave(code)  # not through the destructors of a process group that others may still wait in
    return code


def _guarded(words: Sequence[str], place: Place) -> int:
    """Run, and turn what went wrong into a line on stderr and an exit code."""
    try:
        return _run(words, place)
    except UsageError as error:
        return _usage(one_line(str(error)), place)
    except (CommError, NothingLearned, WriteError) as error:
        log.error("%s", error)
        return FAILED
    except Interrupted as request:
        log.warning("%s: stopped", request)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED


def _run(words: Sequence[str], place: Place) -> int:
    request = parse(words)
    if "--help" in request.flags:
        return _say(help_text(), place)
    if "--version" in request.flags:
        return _say(f"fedddp {__version__}", place)
    config = resolve(_configured(request.layers), place)
    if "--print-config" in request.flags:
        return _say(to_toml(config), place)
    check_meeting(place, os.environ)
    if warning := alone_of_many(os.environ):
        log.warning("%s", warning)
    return record(_train)(prepare(config, place)) or DONE


def _configured(layers: Sequence[dict[str, Any]]) -> Config:
    """The layers' configuration, on top of that of the run folder that is resumed, if one is named."""
    config = build(*layers)
    saved = Path(config.run.resume) / "config.toml"
    if config.run.resume in ("never", "auto") or not saved.is_file():  # what is no run folder is refused when located
        return config
    return build(read_toml(saved), *layers)


def _train(prepared: Prepared) -> int:
    place = prepared.place
    if place.rank == 0 and spans_hosts(place, os.environ) and not prepared.config.privacy.trust_network:
        log.warning(SPANS_HOSTS)
    experiment = connect(prepared)
    try:
        _, summary = experiment.train()
    except Interrupted:
        return INTERRUPTED
    if folder := experiment.folder:
        summary_table(summary)
        print(f"run folder: {folder.path}\nTensorBoard: {_tensorboard_command(folder.path.parent)}", flush=True)
    return DONE


def _tensorboard_command(runs: Path) -> str:
    """As it works in the user's shell: by its path where the environment is not activated (make train)."""
    activated = sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix
    program = "tensorboard" if activated else os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    return f"{program} --logdir {runs}"


def _say(text: str, place: Place) -> int:
    if place.rank == 0:
        print(text, flush=True)
    return DONE


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


if __name__ == "__main__":
    sys.exit(main())
