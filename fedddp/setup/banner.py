"""Say at the start of a run what is about to be trained, in a few lines of at most 80 columns."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from ..config import flatten, to_dict
from ..telemetry import Beside, Plan, SideWork, Sink, progress
from ..telemetry.environment import memory
from .about import local_work, many, span
from .prepared import Prepared

if TYPE_CHECKING:
    from .experiment import Experiment

WIDTH = 80


def banner(x: Experiment) -> str:
    """Return the lines for ``x``, on the rank that has the run folder."""
    assert x.folder is not None
    p, config, names = x.prepared, x.prepared.config, flatten(to_dict(x.prepared.config))
    sizes, ranks = p.data.sizes, p.place.world_size
    size = config.client.batch_size
    lr = getattr(p.training.optimizer, "lr", None)
    rows = {
        "model": f"{names['model.name']}, {p.spec.num_trainable:,} parameters trained, {p.spec.num_frozen:,} frozen",
        "data": f"{names['data.name']}, {int(sizes.sum()):,} examples; {span(sizes)} a client",
        "clients": f"{config.num_clients:,}, {config.cohort_size:,} of them per round",
        "training": f"{names['algorithm.name']}, {many(config.run.rounds, 'round')}; {local_work(config)}, "
        f"{f'batches of {size}' if size else 'all examples at once'}{f', lr {lr:g}' if lr else ''}",
        "ranks": f"{ranks} on {p.device.type}, {many(config.run.threads, 'thread')} each",
        "upload": _upload(x),
        "memory": f"{memory()}, of rank 0 so far",
    }
    lines = [f"{x.folder.path.name}, {time.strftime('%Y-%m-%d %H:%M')}"]
    lines += [f"  {name:<10}{text}" for name, text in rows.items()]
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines)


def whereabouts(path: Path, *, writes: bool) -> str:
    """Return where the files of a run on several machines are, for the one whose ranks include who ``writes``."""
    if writes:
        return f"this machine, {socket.gethostname()}, has rank 0, which writes {path}"
    return f"rank 0 on another machine writes {path.name}; telemetry.progress prints its rounds here, too"


def elsewhere(p: Prepared, plan: Plan) -> list[Sink]:
    """Return what prints a line per round on the first rank of each machine but rank 0's."""
    if not p.place.prints_for_machine or p.config.telemetry.progress == "off":
        return []
    return [Beside("progress", sink, SideWork()) for sink in progress("lines", plan)]


def _upload(x: Experiment) -> str:
    """The size of an update, and what a rank sends in a round where that follows from it: in a plain sum."""
    p, ranks = x.prepared, x.prepared.place.world_size
    numbers = sum(x.federation.pipeline.layout.values())
    text = f"{decimal(numbers * p.spec.dtype.itemsize)} per client"
    if ranks == 1:
        return f"{text}; one rank sends nothing"
    if p.config.hides or p.config.needs_single_updates or p.config.delivery != "whole":
        return f"{text}, uncompressed; bytes sent follow after round 2"
    width = 8 if p.config.aggregation.sum == "exact" else p.spec.dtype.itemsize
    return f"{text}; each rank sends {decimal(round(2 * (ranks - 1) / ranks * numbers * width))} per round"
