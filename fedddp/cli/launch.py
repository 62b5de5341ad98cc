"""Start several ranks of ``fedddp train``, on this machine or on each of several."""

import logging
import os
import shlex
from argparse import Namespace
from pathlib import Path

import torch

from ..checkpoints.run_folder import of_launch, read_json, settle
from ..comm.coordinator import Coordinator
from ..comm.interrupt import Interrupted
from ..comm.launcher import launch
from ..comm.machines import Failure, Machines, rank_command
from ..comm.overdue import watched
from ..comm.world import Place, is_own, local_cores
from ..config import Config, ResolvedConfig, parse
from ..errors import DONE, FAILED, INTERRUPTED, USAGE, UsageError, in_words
from ..launched import OPTIONS
from ..setup.checks import SURVIVORS, refuse
from ..setup.resolve import resolve
from ..train import configured, shown
from .slurm import Batch, check_options, start

log = logging.getLogger("fedddp")


def run(args: Namespace) -> int:
    """Start the ranks that ``args`` ask for (see `fedddp.cli.options.launch`), and wait for them. The exit code."""
    if args.dry_run:
        raise UsageError("--dry-run: takes one process, and this command starts several; use fedddp train --dry-run")
    check_options(args)
    given = configured(parse(args.words, args.options).layers)  # a mistake is found before a rank starts
    if args.slurm:
        return _batch(args, given)
    machines = _machines(args, given.run.timeout)
    config = resolve(given, Place(0, machines.ranks * machines.count, 0, machines.ranks))
    if args.print_config:
        print(shown(given, config, args.print_config))
        return DONE
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, local_cores() // machines.ranks)))
    try:
        failed = _ran(args, config, machines)
    except Interrupted as request:
        _settle(config, machines, "interrupted", reason=f"{request}; rank 0 ended without writing its end")
        raise
    code, cause = _outcome(failed)
    if failed:
        state, key = ("interrupted", "reason") if code == INTERRUPTED else ("failed", "error")
        said = next(iter(failed.values())).error
        found = _settle(config, machines, state, **{key: f"{cause} ({said})" if said else cause})
        if code == FAILED and "interrupted" in found:  # rank 0 was asked to stop, and another rank ended before it
            code = INTERRUPTED
    if cause and code == FAILED:  # what a rank said of a mistake stays the last line
        log.error("%s", cause)
    return code


def _given(args: Namespace) -> dict[str, object]:
    """The options of how ranks start, meet and start again, as far as they were given."""
    options = {"--max-restarts": args.max_restarts or None, "--min-ranks": args.min_ranks, "--master": args.master}
    options |= {"--node-rank": args.node_rank, "--join-timeout": args.join_timeout}
    return {option: value for option, value in options.items() if value is not None}


def _batch(args: Namespace, given: Config) -> int:
    """Submit the run to SLURM. Raises UsageError for options that are not for it."""
    for option, value in _given(args).items():
        raise UsageError(f"{option}={value}: not with --slurm, which starts ranks and queues again; leave it out")
    if not args.ranks:
        raise UsageError("--slurm: how many ranks a machine of the cluster has is not known here; add -n RANKS")
    config = resolve(given, Place(0, args.ranks * args.nnodes, 0, args.ranks))
    if args.print_config:
        print(shown(given, config, args.print_config))
        return DONE
    return start(Batch(config.run.name, args.ranks, args.nnodes, args.words, config.run.device), args)


def _settle(config: ResolvedConfig, machines: Machines, state: str, **cause: str) -> list[str]:
    """Write the end of the run where rank 0 could not, or wrote only that this launcher asked it to stop.

    The states that its folders have then.
    """
    run = config.run
    asked = "SIGTERM" if state == "failed" else ""
    named = [Path(run.resume)] if run.resume not in ("never", "auto") else Path(run.dir).glob("*")
    folders = of_launch(named, machines.id) if machines.number == 0 else []
    for folder in folders:
        settle(folder, state, asked, **cause)
    return [read_json(folder / "status.json").get("state", "") for folder in folders]


def _ran(args: Namespace, config: ResolvedConfig, machines: Machines) -> dict[int, Failure]:
    """Start the ranks and wait for their end; those that failed, and how."""
    sizes = ["-n", str(machines.ranks), *([f"--nnodes={args.nnodes}"] if args.nnodes > 1 else [])]
    os.environ[OPTIONS] = shlex.join([*sizes, *(f"{option}={value}" for option, value in _given(args).items())])
    if args.min_ranks:
        codes = _coordinated(args, config, machines).run()
        return {rank: Failure(code, "") for rank, code in codes.items()}
    with watched(machines.ranks):
        return launch("fedddp.train", args.words, machines)


def _coordinated(args: Namespace, config: ResolvedConfig, machines: Machines) -> Coordinator:
    """What starts the ranks and goes on with those that are left. Raises UsageError where that does not work."""
    front = f"--min-ranks={args.min_ranks}"
    if args.nnodes > 1:
        raise UsageError(f"{front}: works on one machine; leave it out, and resume after a loss (--run.resume=auto)")
    if args.min_ranks > machines.ranks:
        raise UsageError(f"{front}: there are {machines.ranks} ranks; use at most {machines.ranks}")
    refuse(SURVIVORS, config, config)
    command = rank_command("fedddp.train", args.words)
    limits = {"least": args.min_ranks, "restarts": args.max_restarts, "timeout": config.run.timeout}
    return Coordinator(command, machines.ranks, machines.id, **limits)


def _machines(args: Namespace, timeout: float) -> Machines:
    ranks = args.ranks or torch.cuda.device_count() or 2
    if args.nnodes > 1 and not (args.master or "").rpartition(":")[2].isdecimal():
        raise UsageError(f"--nnodes={args.nnodes}: several machines need --master=HOST:PORT of machine 0")
    master, number = args.master or "", args.node_rank
    if number is None and (args.nnodes == 1 or is_own(master.rpartition(":")[0])):
        number = 0
    if number is not None and number >= args.nnodes:
        raise UsageError(f"--node-rank={number}: machines are 0 to {args.nnodes - 1}; set --nnodes to how many")
    if args.nnodes > 1 and args.max_restarts:
        raise UsageError(f"--max-restarts={args.max_restarts}: works on one machine; start the command again instead")
    patience = args.join_timeout or Machines.patience
    return Machines(ranks, args.nnodes, number, master, args.max_restarts, patience, timeout)


def _outcome(failed: dict[int, Failure]) -> tuple[int, str]:
    """The exit code, by those of the ranks that failed, and the first of them in words; empty without one."""
    if not failed:
        return DONE, ""
    rank, code = next((rank, failure.code) for rank, failure in failed.items())
    cause = f"rank {rank} {in_words(code)}; the other ranks were stopped"
    if any(failure.code == USAGE for failure in failed.values()):
        return USAGE, cause
    return (INTERRUPTED if code == INTERRUPTED else FAILED), cause
