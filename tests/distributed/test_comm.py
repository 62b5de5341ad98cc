"""Collectives over gloo ranks, and what they say when a rank does not come."""

import os
import signal
import threading
import time

import pytest
import torch

from fedddp import interrupt
from fedddp.comm import Comm, CommError
from fedddp.interrupt import Interrupted


def collectives(comm):
    total = comm.all_reduce(torch.tensor([comm.rank + 1.0, 10.0]), "sum").tolist()
    copy = comm.broadcast(torch.full((3,), float(comm.rank + 7)), "copy").tolist()
    text = comm.broadcast_text(f"from rank {comm.rank}: ü", "text")
    anyone = comm.any(comm.rank == comm.world_size - 1, "any")
    nobody = comm.any(False, "any")
    comm.barrier("barrier")
    return total, copy, text, anyone, nobody


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_collectives(run_ranks, world_size):
    total = [world_size * (world_size + 1) / 2, 10.0 * world_size]
    expected = (total, [7.0] * 3, "from rank 0: ü", True, False)
    assert run_ranks(collectives, world_size) == [expected] * world_size


def test_alone_is_the_same_interface_and_sends_nothing():
    comm = Comm.alone()
    assert collectives(comm) == ([1.0, 10.0], [7.0] * 3, "from rank 0: ü", True, False)
    assert comm.bytes_sent == 0


def bytes_of_a_megabyte(comm):
    comm.all_reduce(torch.zeros(250_000), "sum")
    return comm.bytes_sent


@pytest.mark.parametrize(("world_size", "expected"), [(2, 1_000_000), (4, 1_500_000)])
def test_bytes_follow_the_ring(run_ranks, world_size, expected):
    assert run_ranks(bytes_of_a_megabyte, world_size) == [expected] * world_size


def missing(comm, how):
    """Rank 1 does not come to the second collective."""
    comm.barrier("first")
    comm.enter("train in round 3")
    if comm.rank == 1:
        if how == "hang":
            time.sleep(60)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    began = time.monotonic()
    with pytest.raises(CommError) as caught:
        comm.all_reduce(torch.zeros(1000), "aggregate")
    return str(caught.value), time.monotonic() - began


@pytest.mark.parametrize("how", ["hang", "kill", "exit"])
def test_the_missing_rank_and_its_phase_are_named(run_ranks, how):
    results = run_ranks(missing, 3, how, timeout=3.0, lost=(1,))
    for rank in (0, 2):
        message, seconds = results[rank]
        assert message.startswith("aggregate: ")
        assert "rank 1 is missing, last seen in 'train in round 3'" in message
        assert "rank 0 is" not in message
        assert "rank 2 is" not in message
        assert seconds < 6


def never_came(comm):
    return None


def test_a_rank_that_never_starts_is_named(tmp_path):
    from fedddp.comm import Place

    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(CommError, match="rank 1 never came"):
        Comm.connect(Place(0, 2, 0, 2), torch.device("cpu"), timeout=1.5, store=store)


def differ(comm):
    signature = {"run.seed": "0", "model parameters": "abc" if comm.rank != 2 else "abd"}
    try:
        comm.check_signature(signature)
    except CommError as error:
        return str(error)
    return "fits"


def test_a_rank_with_another_model_is_named(run_ranks):
    told = run_ranks(differ, 3)
    assert told[:2] == ["fits", "fits"]
    assert told[2] == "rank 2 does not match rank 0: model parameters is abd here, abc on rank 0"


def interrupted_while_waiting(comm):
    """Rank 1 stays away for longer than the others are willing to be ignored."""
    if comm.rank == 1:
        time.sleep(3)
        return None
    began = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with interrupt.handled(), pytest.raises(Interrupted, match="SIGTERM"):
        comm.barrier("aggregate")
    return time.monotonic() - began


def test_a_signal_is_noticed_while_waiting_for_a_rank(run_ranks):
    assert run_ranks(interrupted_while_waiting, 2)[0] < 1.5
