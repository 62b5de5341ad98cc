"""Going on without ranks that were lost: who is left agrees through the store and sums again."""

import os
import signal
import socket
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fedddp.comm import Comm, CommError, LostRank, Place, gloo, interrupt

GRACE = 1.25


def stop(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


def share(comm, size=5):
    """What a rank puts into the sum: another power of two a rank, so that the sum says who was in it."""
    return torch.full((size,), 2**comm.rank)


def summed_in_spite_of_losses(comm, size=5):
    """The sum, and how often a rank was lost on the way to it."""
    lost = 0
    while True:
        try:
            return set(comm.all_reduce(share(comm, size), "aggregate").tolist()), lost
        except LostRank:
            lost += 1
            comm.regroup(GRACE)


def lose_one_before(comm, how):
    comm.barrier("first")
    if comm.rank == 2:
        stop(how)
    total, lost = summed_in_spite_of_losses(comm)
    text = comm.broadcast_text(f"from rank {comm.rank}", "text")
    slots = comm.gather_bytes(bytes([comm.rank] * (comm.rank + 1)), 8, "slots")
    return total, lost, comm.members, (comm.rank, comm.world_size), text, slots, comm.any(comm.rank == 3, "any")


@pytest.mark.parametrize("how", ["exit", "kill", "freeze"])
def test_survivors_sum_without_a_rank_lost_before_the_sum(run_ranks, how):
    results = run_ranks(lose_one_before, 4, how, timeout=3.0, lost=(2,))
    for rank in (0, 1, 3):
        slots = [b"\0", b"\1\1", b"", b"\3\3\3\3"]
        assert results[rank] == ({1 + 2 + 8}, 1, (0, 1, 3), (rank, 4), "from rank 0", slots, True)


def lose_one_during(comm):
    """Rank 1 is killed a moment after 64 MB of it were handed to the transport."""
    comm.barrier("first")
    if comm.rank == 1:
        comm.watch = lambda *_: threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return [summed_in_spite_of_losses(comm, 8_000_000) for _ in range(2)], comm.members


def test_survivors_sum_without_a_rank_lost_during_the_sum(run_ranks):
    results = run_ranks(lose_one_during, 3, timeout=4.0, lost=(1,))
    assert results[0] == results[2] == ([({1 + 4}, 1), ({1 + 4}, 0)], (0, 2))


def lose_two(comm, at_once):
    comm.barrier("first")
    if comm.rank == 3 or (at_once and comm.rank == 1):
        stop("kill")
    first = comm.rank == 1 and not at_once
    try:
        comm.all_reduce(share(comm), "aggregate")
    except LostRank:
        if first:
            threading.Timer(0.5, stop, ("kill",)).start()  # it is counted among the survivors, or nearly so
        comm.regroup(GRACE)
    return summed_in_spite_of_losses(comm)[0], comm.members


@pytest.mark.parametrize("at_once", [True, False])
def test_two_losses(run_ranks, at_once):
    results = run_ranks(lose_two, 5, at_once, timeout=2.0, lost=(1, 3))
    for rank in (0, 2, 4):
        assert results[rank] == ({1 + 4 + 16}, (0, 2, 4))


def all_but_rank_0_are_lost(comm):
    if comm.rank > 0:
        stop("kill")
    return summed_in_spite_of_losses(comm), comm.members, comm.broadcast_text("me", "text")


def test_rank_0_can_be_left_alone(run_ranks):
    results = run_ranks(all_but_rank_0_are_lost, 3, timeout=3.0, lost=(1, 2))
    assert results[0] == (({1}, 1), (0,), "me")


def lose_rank_0(comm):
    comm.barrier("first")
    comm.enter("train in round 3")
    if comm.rank == 0:
        stop("kill")
    with pytest.raises(LostRank):
        comm.all_reduce(share(comm), "aggregate")
    with pytest.raises(LostRank, match="have not regrouped"):
        comm.all_reduce(share(comm), "aggregate")  # at once: the old group is of no more use
    with pytest.raises(CommError) as caught:
        comm.regroup(GRACE)
    return str(caught.value)


def test_without_rank_0_nobody_goes_on(run_ranks):
    results = run_ranks(lose_rank_0, 3, timeout=3.0, lost=(0,))
    told = "regroup: rank 0, which decides who is left, is lost, last seen in 'train in round 3'"
    assert results[1:] == [told, told]


def lose_the_store(comm, port):
    """The same over the TCP store that rank 0 itself holds: the store goes with it."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    comm = Comm.connect(Place(comm.rank, 3, comm.rank, 3), torch.device("cpu"), timeout=3.0)
    comm.barrier("first")
    if comm.rank == 0:
        stop("kill")
    with pytest.raises(CommError):  # of the rank or of the store, whichever is missed first
        comm.all_reduce(share(comm), "aggregate")
    with pytest.raises(CommError) as caught:
        comm.regroup(GRACE)
    return str(caught.value)


def test_without_the_store_nobody_goes_on(run_ranks):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    results = run_ranks(lose_the_store, 3, port, timeout=3.0, lost=(0,))
    assert all("rank 0" in told and "regroup: the store is gone" in told for told in results[1:])


def given_up(comm):
    """Rank 1 sleeps through the others' regrouping and comes back."""
    comm.barrier("first")
    store = comm._heartbeat.store
    if comm.rank != 1:
        result = summed_in_spite_of_losses(comm), comm.members
        store.get("rank 1 came back")  # it finds the others alive, and what they began with it ended
        return result
    store.raw.wait(["regroup/0/members"], timedelta(seconds=60))  # without a safe point
    with pytest.raises(LostRank):
        comm.all_reduce(share(comm), "aggregate")
    with pytest.raises(CommError) as caught:
        comm.regroup(GRACE)
    store.set("rank 1 came back", "")
    return str(caught.value)


def test_a_rank_that_was_given_up_is_told_so(run_ranks):
    results = run_ranks(given_up, 3, timeout=3.0)
    assert results[0] == results[2] == (({1 + 4}, 1), (0, 2))
    assert results[1] == "regroup: rank 1 went without progress for too long; ranks [0, 2] continue without it"


def slow_but_alive(comm):
    """Rank 2 trains on while rank 1 is lost: it is waited for, and hears of the loss when it comes."""
    comm.barrier("first")
    heartbeat = comm._heartbeat
    if comm.rank == 1:
        stop("kill")
    if comm.rank == 2:
        heartbeat.store.get("regroup/0/0")  # rank 0 has lost rank 1 and decides who is left
        last = heartbeat._sent + 2 * GRACE / heartbeat.interval
        while heartbeat._sent < last:
            interrupt.check()
    return summed_in_spite_of_losses(comm), comm.members


def test_a_slow_rank_is_not_given_up(run_ranks):
    results = run_ranks(slow_but_alive, 3, timeout=3.0, lost=(1,))
    assert results[0] == results[2] == (({1 + 4}, 1), (0, 2))


def asked_by_one(comm, cuts):
    """Rank 2 asks to regroup while nobody is lost: those that wait elsewhere hear of it soon, by its connection or,
    where that cannot be cut, by the store."""
    if not cuts:
        gloo.cut = lambda _: None
    comm.barrier("first")
    told = ""
    if comm.rank == 2:
        comm.regroup(GRACE)
    else:
        with pytest.raises(LostRank, match="another rank asks|rank 2 is missing" if cuts else "another rank asks") as e:
            comm.all_reduce(share(comm), "aggregate")
        told = str(e.value)
        comm.regroup(GRACE)
    return summed_in_spite_of_losses(comm), comm.members, "waited" in told  # for the timeout


@pytest.mark.parametrize("cuts", [True, False])
def test_those_who_wait_hear_of_a_regroup(run_ranks, cuts):
    assert run_ranks(asked_by_one, 3, cuts, timeout=20.0) == [(({7}, 0), (0, 1, 2), False)] * 3


def with_nccl(comm):
    comm._group.backend = "nccl"
    with pytest.raises(CommError, match="NCCL cannot continue without a rank"):
        comm.regroup()


def test_nccl_is_refused_with_the_reason(run_ranks):
    run_ranks(with_nccl, 2)


def leave_by_the_door(comm):
    """A process that lost a group ends like any other, through Python's own end."""
    if comm.rank == 1:
        stop("kill")
    total = summed_in_spite_of_losses(comm)
    comm.close()
    return total, dist.is_initialized()


def test_closing_after_a_loss(run_ranks):
    results = run_ranks(leave_by_the_door, 3, timeout=3.0, lost=(1,))
    assert results[0] == results[2] == (({5}, 1), False)
