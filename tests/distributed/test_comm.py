"""Collectives over gloo ranks, and what they say when a rank does not come."""

import os
import signal
import socket

import pytest
import torch

import fedddp
from fedddp.comm import Comm, CommError, MessageRefused, Place, interrupt
from fedddp.comm.guard import Guard
from fedddp.comm.interrupt import Interrupted
from fedddp.comm.ledger import Entry
from tests.helpers.distributed import configured, experiment_of


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
    assert comm.gather_bytes(b"mine", 4, "slots") == [b"mine"]
    assert comm.regroup() == comm.members == (0,)
    assert comm.bytes_sent == 0
    assert comm.ledger.take() == ()


def exchanges(comm):
    r, everyone = comm.rank, comm.world_size
    rows = torch.tensor([[10 * r + to, 0] for to in range(everyone)], dtype=torch.int8)
    before = rows.clone()
    swapped, gathered = comm.all_to_all(rows, "rows"), comm.all_gather(torch.tensor([r, 7.0]), "all")
    assert torch.equal(rows, before)
    assert swapped.tolist() == [[10 * other + r, 0] for other in range(everyone)]
    assert gathered.tolist() == [[other, 7.0] for other in range(everyone)]
    return comm.bytes_sent


@pytest.mark.parametrize("world_size", [2, 3])
def test_rows_go_to_their_ranks_and_everybodys_tensor_to_all(run_ranks, world_size):
    sent = 2 * (world_size - 1) + 8 * (world_size - 1)
    assert run_ranks(exchanges, world_size) == [sent] * world_size


def test_exchanges_alone_are_copies():
    comm = Comm.alone()
    assert exchanges(comm) == 0
    x = torch.zeros(1, 3)
    assert comm.all_to_all(x, "rows").data_ptr() != x.data_ptr()


def bytes_of_a_megabyte(comm):
    comm.all_reduce(torch.zeros(250_000), "sum")
    return comm.bytes_sent


@pytest.mark.parametrize(("world_size", "expected"), [(2, 1_000_000), (4, 1_500_000)])
def test_bytes_follow_the_ring(run_ranks, world_size, expected):
    assert run_ranks(bytes_of_a_megabyte, world_size) == [expected] * world_size


def ledger_of(comm):
    comm.ledger.take()
    comm.all_reduce(torch.zeros(3, 100), "sum")
    comm.all_reduce(torch.zeros(3, 100), "sum")
    comm.broadcast(torch.zeros(7, dtype=torch.int64), "copy")
    collectives = [entry for entry in comm.ledger.take() if entry.op != "store"]
    comm.enter("phase")
    return collectives, [entry for entry in comm.ledger.take() if entry.op == "store"], comm.bytes_sent


def test_the_ledger_holds_what_was_sent(run_ranks):
    for rank, (collectives, stored, sent) in enumerate(run_ranks(ledger_of, 3)):
        copies = (2, 0, 0)[rank]  # rank 0 sends to 1 and 2
        assert collectives == [
            Entry("all_reduce", "float32", (3, 100), 2 * 1600, "sum", 2),
            Entry("broadcast", "int64", (7,), 56 * copies, "copy", 1),
        ]
        assert sent == 3200 + 56 * copies
        assert {entry.purpose for entry in stored} == {"progress"}
        assert all(entry.bytes >= len("at/0" + "3|0|phase") * entry.count for entry in stored)


def messages(comm):
    mine = bytes(range(comm.rank, comm.rank + 3)) if comm.rank else b""
    everyone = comm.gather_bytes(mine, 3, "slots")
    with pytest.raises(ValueError, match="4 bytes in a slot of 3"):
        comm.gather_bytes(bytes(4), 3, "slots")
    seen = []
    comm.watch = lambda purpose, x: seen.append((purpose, x.clone()))
    comm.all_reduce(torch.full((2,), float(comm.rank)), "sum")
    comm.watch = None
    comm.all_reduce(torch.zeros(2), "sum")
    return everyone, [(purpose, x.tolist()) for purpose, x in seen]


def test_messages_are_gathered_and_a_watcher_sees_what_leaves(run_ranks):
    for rank, (everyone, seen) in enumerate(run_ranks(messages, 3)):
        assert everyone == [b"", b"\1\2\3", b"\2\3\4"]
        assert seen == [("sum", [float(rank)] * 2)]


def two_write_one_slot(comm):
    """A rank that writes a length into another's slot spoils it; nobody reads beyond the slot."""
    comm.watch = lambda _, slots: slots[0].fill_(200) if comm.rank == 1 else None
    with pytest.raises(CommError, match=r"slots: rank 0's message has length \d+ in a slot of 3"):
        comm.gather_bytes(b"abc", 3, "slots")


def test_a_spoilt_slot_is_refused(run_ranks):
    run_ranks(two_write_one_slot, 2)


def refused(comm, path):
    """Rank 1 would send what is not in the protocol, by Comm or around it."""
    comm.guard = Guard.of(secure=True)
    comm.ledger.take()
    update = torch.ones(1000)
    if path == "objects":
        comm.guard = None  # object collectives are refused without one
    send = {
        "comm": lambda: comm.all_reduce(update, "aggregate"),
        "around": lambda: torch.distributed.all_reduce(update),
        "objects": lambda: torch.distributed.all_gather_object([None, None], update),
    }[path]
    if comm.rank == 1:
        with pytest.raises(MessageRefused) as caught:
            send()
        return str(caught.value), [e for e in comm.ledger.take() if e.op != "store"], comm.bytes_sent
    with pytest.raises(CommError, match="rank 1 is missing"):  # nothing came
        comm.all_reduce(torch.ones(1000, dtype=torch.int64), "aggregate")
    return None


@pytest.mark.parametrize("path", ["comm", "around", "objects"])
def test_what_is_not_in_the_protocol_is_refused_before_it_is_sent(run_ranks, path):
    told, ledger, sent = run_ranks(refused, 2, path, timeout=2.0)[1]
    assert (ledger, sent) == ([], 0)
    assert (
        told
        == {
            "comm": "privacy.guard refuses all_reduce of float32 [1000] (4000 bytes) for 'aggregate'; "
            "allowed: all_reduce of int64",
            "around": "torch.distributed.all_reduce is refused: privacy.guard is on; "
            "ranks talk through fedddp.comm.Comm only",
            "objects": "torch.distributed.all_gather_object is refused: it unpickles what a peer sends; "
            "ranks talk through fedddp.comm.Comm only",
        }[path]
    )


def beside_own_group(comm, meeting, when):
    """The caller has a default group of its own, made before the run or during it, and uses it when the run is over."""

    def own_group():
        store = torch.distributed.FileStore(meeting, 2)
        torch.distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=2)

    def gathered(value):
        objects = [None, None]
        torch.distributed.all_gather_object(objects, value)
        return objects

    if when == "before":
        comm.close()
        own_group()
        group = torch.distributed.group.WORLD
        store = torch.distributed.FileStore(f"{meeting}-run", 2)
        comm = Comm.connect(Place(comm.rank, 2, comm.rank, 2), torch.device("cpu"), timeout=20.0, store=store)
    else:
        own_group()
        group = torch.distributed.group.WORLD
    comm.guard = Guard.of()
    with pytest.raises(MessageRefused):
        gathered("during")
    total = comm.all_reduce(torch.ones(1), "aggregate").item()
    comm.close()
    assert torch.distributed.group.WORLD is group
    return total, gathered(f"from {comm.rank}")


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_default_group_of_the_callers_is_left_alone(tmp_path, run_ranks, when):
    expected = (2.0, ["from 0", "from 1"])
    assert run_ranks(beside_own_group, 2, str(tmp_path / "own"), when) == [expected] * 2


def run_that_fails(comm, table):
    """What a run changed in the process is undone when it fails too."""
    before = torch.distributed.all_gather_object, torch.distributed.all_reduce
    experiment = experiment_of(comm, table)
    refused = torch.distributed.all_gather_object, torch.distributed.all_reduce
    with pytest.raises(ArithmeticError), experiment.ending():
        raise ArithmeticError("fails")
    after = torch.distributed.all_gather_object, torch.distributed.all_reduce
    comm.close()
    closed = torch.distributed.all_gather_object, torch.distributed.all_reduce
    names = [[function.__name__ for function in functions] for functions in (before, refused, after, closed)]
    return *names, torch.distributed.is_initialized()


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, run_ranks):
    functions, connected = ["all_gather_object", "all_reduce"], ["refuse", "all_reduce"]
    expected = (connected, ["refuse", "refuse"], connected, functions, False)
    assert run_ranks(run_that_fails, 2, configured(tmp_path, privacy={"guard": True})) == [expected] * 2


def run_inside(comm, meeting, table):
    """A program with a default group of its own calls fedddp in it, under torchrun's environment."""
    comm.close()
    place = {"RANK": comm.rank, "WORLD_SIZE": 2, "LOCAL_RANK": comm.rank, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting})
    torch.distributed.init_process_group("gloo")
    group, threads = torch.distributed.group.WORLD, torch.get_num_threads()
    result = fedddp.run(table)
    assert torch.distributed.group.WORLD is group
    assert torch.get_num_threads() == threads
    objects = [None, None]
    torch.distributed.all_gather_object(objects, result.summary["model_sha256"])
    torch.distributed.destroy_process_group()
    return objects


def test_a_program_with_a_default_group_runs_fedddp_in_it(tmp_path, run_ranks):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (first, second), others = run_ranks(run_inside, 2, port, configured(tmp_path))
    assert first == second
    assert others == [first, second]


def no_default_group(comm):
    return torch.distributed.is_initialized()


def test_with_gloo_there_is_nothing_to_send_through_but_comm(run_ranks):
    assert run_ranks(no_default_group, 2) == [False, False]


def missing(comm, how, discreet):
    """Rank 1 does not come to the second collective."""
    comm.keep_discreet(discreet)
    comm.barrier("first")
    comm.enter("train in round 3")
    if comm.rank == 1:
        if how == "hang":
            signal.pause()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    comm._heartbeat.store.set(f"ready/{comm.rank}", "")
    comm._heartbeat.store.get(f"ready/{2 - comm.rank}")  # or a busy machine may make one of the two late
    with pytest.raises(CommError) as caught:
        comm.all_reduce(torch.zeros(1000), "aggregate")
    return str(caught.value)


@pytest.mark.parametrize("discreet", [False, True])
@pytest.mark.parametrize("how", ["hang", "kill", "exit"])
def test_the_missing_rank_and_its_phase_are_named(run_ranks, how, discreet):
    for message in run_ranks(missing, 3, how, discreet, timeout=3.0, lost=(1,))[::2]:
        assert message.startswith("aggregate: ")
        assert "rank 1 is missing, last seen in 'train in round 3'" in message
        assert "rank 0 is" not in message
        assert "rank 2 is" not in message
        assert ("waited" in message) == (how == "hang")  # else the connection's end is noticed before the timeout


def never_came(comm):
    return None


def test_a_rank_that_never_starts_is_named(tmp_path):
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
    """Rank 1 stays away until rank 0 has noticed a signal in a collective for which it waits for rank 1."""
    store = comm._heartbeat.store
    if comm.rank == 1:
        return store.get("noticed")
    comm.watch = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    with interrupt.handled(), pytest.raises(Interrupted, match="SIGTERM"):
        comm.barrier("aggregate")
    store.set("noticed", "SIGTERM")
    return b"SIGTERM"


def test_a_signal_is_noticed_while_waiting_for_a_rank(run_ranks):
    assert run_ranks(interrupted_while_waiting, 2) == [b"SIGTERM"] * 2
