"""Running a function on several ranks, in processes forked from a server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fedddp.comm import Comm, Place

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "fedddp.setup.assemble", "opacus.accountants.analysis"])


def run(
    folder: Path,
    body: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 30.0,
    limit: float = 60.0,
    lost: tuple[int, ...] = (),
    device: str = "cpu",
    backend: str = "gloo",
) -> list[Any]:
    """``body(comm, *args)`` in ``world_size`` processes; their results.

    Ranks meet through a file in ``folder``. The first failing rank's traceback is the failure message; ranks that hang
    are killed after ``limit`` seconds. ``lost``: ranks that are expected not to report. ``device``: "cuda" is a GPU a
    rank, as far as there are.
    """
    meeting = folder / f"store-{time.monotonic_ns()}"
    pipes = [_context.Pipe(duplex=False) for _ in range(world_size)]
    ranks = [
        _context.Process(
            target=_rank, args=(body, rank, world_size, str(meeting), timeout, pipes[rank][1], args, device, backend)
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        return _collect(pipes, ranks, time.monotonic() + limit, lost)
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _collect(pipes: list[Any], ranks: list[Any], deadline: float, lost: tuple[int, ...]) -> list[Any]:
    results: list[Any] = [None] * len(ranks)
    waiting = set(range(len(ranks))) - set(lost)
    while waiting:
        assert time.monotonic() < deadline, f"ranks {sorted(waiting)} hang"
        for rank in sorted(waiting):
            if pipes[rank][0].poll(0.01):
                failed, results[rank] = pickle.loads(pipes[rank][0].recv_bytes())
                waiting.remove(rank)
                assert not failed, f"rank {rank}:\n{results[rank]}"
            elif not ranks[rank].is_alive() and not pipes[rank][0].poll(0.1):
                raise AssertionError(f"rank {rank} left with exit code {ranks[rank].exitcode} and no report")
    return results


def _rank(
    body: Callable[..., Any],
    rank: int,
    world_size: int,
    meeting: str,
    timeout: float,
    report: Connection,
    args: tuple,
    device: str,
    backend: str,
) -> None:
    torch.set_num_threads(1)
    try:
        place = Place(rank, world_size, rank, world_size)
        store = dist.FileStore(meeting, world_size)
        where = torch.device(device, rank % torch.cuda.device_count()) if device == "cuda" else torch.device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        comm = Comm.connect(place, where, backend=backend, timeout=timeout, store=store)
        report.send_bytes(pickle.dumps((False, body(comm, *args))))  # by value: tensors are not shared
    except BaseException:
        report.send_bytes(pickle.dumps((True, traceback.format_exc())))
    os._exit(0)  # not through the destructors of a group whose other ranks may be gone
