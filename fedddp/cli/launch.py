"""Start several ranks of ``fedddp train``, on this machine or on each of several."""

import logging
import os
import signal
from argparse import Namespace

import torch

from ..comm.launcher import Machines, launch
from ..comm.world import Place, local_cores
from ..config import parse
from ..errors import DONE, FAILED, INTERRUPTED, USAGE, UsageError
from ..setup.resolve import resolve
from ..train import configured, shown

log = logging.getLogger("fedddp")


def run(args: Namespace) -> int:
    """Start the ranks that ``args`` ask for (see `fedddp.cli.options.launch`), and wait for them. The exit code."""
    if args.dry_run:
        raise UsageError("--dry-run: takes one process, and this command starts several; use fedddp train --dry-run")
    machines = _machines(args)
    given = configured(parse(args.words, args.options).layers)  # a mistake is found before a rank starts
    config = resolve(given, Place(0, machines.ranks * machines.count, 0, machines.ranks))
    if args.print_config:
        print(shown(given, config, args.print_config))
        return DONE
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, local_cores() // machines.ranks)))
    return _code(launch("fedddp.train", args.words, machines))


def _machines(args: Namespace) -> Machines:
    ranks = args.ranks or torch.cuda.device_count() or 2
    if args.nnodes > 1 and not (args.master or "").rpartition(":")[2].isdecimal():
        raise UsageError(f"--nnodes={args.nnodes}: several machines need --master=HOST:PORT of machine 0")
    if args.node_rank >= args.nnodes:
        raise UsageError(f"--node-rank={args.node_rank}: machines are 0 to {args.nnodes - 1}; set --nnodes to how many")
    if args.nnodes > 1 and args.max_restarts:
        raise UsageError(f"--max-restarts={args.max_restarts}: works on one machine; start the command again instead")
    return Machines(ranks, args.nnodes, args.node_rank, args.master or "", args.max_restarts)


def _code(failed: dict[int, int]) -> int:
    """The exit code, by those of the ranks that failed. What a rank said of a mistake stays the last line."""
    if not failed:
        return DONE
    if USAGE in failed.values():
        return USAGE
    rank, code = next(iter(failed.items()))
    if code == INTERRUPTED:
        return INTERRUPTED
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    log.error("rank %d %s; the other ranks were stopped", rank, how)
    return FAILED
