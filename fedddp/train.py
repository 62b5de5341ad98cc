"""The program: read the configuration, find what is wrong with it, join the other ranks, train.

    torchrun --nproc_per_node=4 -m fedddp.train [FILE.toml ...] [--section.key=value ...]
    python -m fedddp.train                                        # one rank; the same as fedddp train

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted and resumable.
"""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import launched as launched  # first: it ends a rank whose launcher dies while torch is imported
from .cli.dry_run import dry_run
from .cli.main import main as command
from .cli.next_steps import next_steps, resume_command, tensorboard_command
from .cli.outcome import asked
from .comm import record
from .comm.interrupt import Interrupted
from .comm.member import Member
from .comm.world import SPANS_HOSTS, Place, alone_of_many, check_meeting, spans_hosts
from .config import Config, build, read_toml, to_toml
from .errors import DONE, FAILED, INTERRUPTED, UsageError, out_of_memory, raised
from .setup.load import prepare
from .setup.prepared import Prepared
from .setup.resolve import resolve
from .setup.survivors import Survivors
from .telemetry import summary_table

log = logging.getLogger("fedddp")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (default: the command line); the exit code."""
    return command(argv, "train")


def run(args: Namespace) -> int:
    """Train as the command line says; see `fedddp.cli.options.train`. The exit code."""
    place, given = Place.from_env(), configured(asked(args).layers)
    config = resolve(given, place)
    if args.print_config:
        if place.rank == 0:
            print(shown(given, config, args.print_config), flush=True)
        return DONE
    if args.dry_run:
        if place.world_size > 1:
            raise UsageError(f"--dry-run: takes one process, and there are {place.world_size} ranks; use fedddp train")
        return dry_run(given) or DONE
    check_meeting(place, os.environ)
    if warning := alone_of_many(os.environ):
        log.warning("%s", warning)
    member = Member.of(place, config.run.timeout)
    return record(_train)(prepare(config, member.place if member else place), member) or DONE


def shown(given: Config, config: Config, what: str) -> str:
    """The configuration as TOML: what differs from the defaults, or all of it, but for this machine's threads."""
    if what == "changed":
        return to_toml(given, changed=True) or "# every key has its default; --print-config=all prints them"
    run = config.run.model_copy(update={"threads": given.run.threads})
    return to_toml(config.model_copy(update={"run": run}))


def configured(layers: Sequence[dict[str, Any]]) -> Config:
    """The layers' configuration, on top of that of the run folder that is resumed, if one is named."""
    config = build(*layers)
    saved = Path(config.run.resume) / "config.toml"
    if config.run.resume in ("never", "auto") or not saved.is_file():  # what is no run folder is refused when located
        return config
    return build(read_toml(saved), *layers)


def _train(prepared: Prepared, member: Member | None) -> int:
    place, survivors = prepared.place, Survivors(prepared, member)
    if place.rank == 0 and spans_hosts(place, os.environ) and not prepared.config.privacy.trust_network:
        log.warning(SPANS_HOSTS)
    try:
        try:
            experiment, summary = survivors.train()
        except Interrupted:
            if (experiment := survivors.experiment) is None:
                raise
            if folder := experiment.folder:
                print(f"resume: {resume_command(prepared, folder.path)}", flush=True)
            return INTERRUPTED
    except (MemoryError, RuntimeError) as error:  # of clients, it costs their contribution; here, of anything else
        if memory := out_of_memory(error):
            log.error("rank %d: %s", place.rank, memory)
            return FAILED
        raise
    except SystemExit as left:  # here: torch's `record` takes sys.exit(0) for success
        log.error("%s: sys.exit() ended the run; raise an exception instead", raised(left))
        return FAILED
    if folder := experiment.folder:
        summary_table(summary, experiment.federation.telemetry.history)
        print(f"run folder: {folder.path}\nTensorBoard: {tensorboard_command(folder.path.parent)}", flush=True)
        print("next:", *next_steps(prepared, folder.path, summary), sep="\n  ", flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
