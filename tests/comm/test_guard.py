"""The allow-list: what the protocol contains passes, a raw update beside it does not, whatever its purpose says."""

import pytest
import torch
import torch.distributed

from fedddp.comm import Comm, CommError, MessageRefused
from fedddp.comm import guard as guards
from fedddp.comm.guard import AllowedMessage, Guard

D = 1_663_370  # McMahan's CNN


def passes(guard, op, dtype, shape, purpose):
    size = torch.Size(shape).numel() * (torch.empty(0, dtype=getattr(torch, dtype)).element_size())
    try:
        guard.check(op, dtype, tuple(shape), size, purpose)
    except MessageRefused:
        return False
    return True


def test_the_plain_protocol():
    guard = Guard.of()
    assert passes(guard, "broadcast", "float32", (D,), "distribute the model")
    assert passes(guard, "broadcast", "int64", (3,), "resume")
    assert passes(guard, "broadcast", "float64", (D,), "resume")
    assert passes(guard, "broadcast", "uint8", (90,), "run folder")
    assert passes(guard, "all_reduce", "float64", (101,), "evaluate")
    assert all(passes(guard, "all_reduce", t, (D,), "aggregate") for t in ("float32", "float64", "int64", "int32"))
    assert all(passes(guard, "all_reduce", "float32", (1,), p) for p in ("target accuracy", "done", "close"))
    assert not any(passes(guard, "all_reduce", "uint8", (9,), purpose) for purpose in guards.SECURE)


@pytest.mark.parametrize(("ring", "other"), [("int64", "int32"), ("int32", "int64")])
def test_the_masked_protocol_sums_in_the_ring_only(ring, other):
    guard = Guard.of(secure=True, ring=ring)
    assert passes(guard, "all_reduce", ring, (D,), "aggregate")
    for dtype in ("float32", "float64", "bfloat16", "float16", "uint8", "int8", other):
        assert not passes(guard, "all_reduce", dtype, (D,), "aggregate")
    assert not passes(guard, "broadcast", ring, (D,), "aggregate")
    for step in ("hello", "keys", "shares", "commit", "reveal", "status"):
        assert passes(guard, "all_reduce", "uint8", (3, 2000), f"secure {step}")
        assert not passes(guard, "all_reduce", "uint8", (D,), f"secure {step}")
        assert not passes(guard, "all_reduce", "int64", (10,), f"secure {step}")


def test_an_update_under_a_small_purpose_is_refused():
    """199,210 parameters of the MLP, in every type, under every purpose but the model's own."""
    for guard in (Guard.of(), Guard.of(secure=True)):
        for purpose in guard.allowed.keys() - {"aggregate", "distribute the model", "resume"}:
            for dtype in ("float32", "float64", "bfloat16", "int64", "int32"):
                for op in ("all_reduce", "broadcast"):
                    assert not passes(guard, op, dtype, (199_210,), purpose), (purpose, dtype, op)


def test_the_refusal_names_what_was_tried_and_what_would_pass():
    guard = Guard(
        {"a": (AllowedMessage("all_reduce", ("int64", "int32"), 80), AllowedMessage("broadcast", ("uint8",)))}
    )
    guard.check("all_reduce", "int64", (10,), 80, "a")
    guard.check("broadcast", "uint8", (10_000,), 10_000, "a")
    with pytest.raises(CommError) as caught:
        guard.check("all_reduce", "int64", (11,), 88, "a")
    assert str(caught.value) == (
        "privacy.guard refuses all_reduce of int64 [11] (88 bytes) for 'a'; "
        "allowed: all_reduce of int64 or int32 up to 80 bytes or broadcast of uint8"
    )
    with pytest.raises(MessageRefused, match=r"for 'b'; allowed: nothing: known purposes are a$"):
        guard.check("all_reduce", "int64", (1,), 8, "b")


def test_alone_the_same_is_refused():
    comm = Comm.alone()
    try:
        comm.guard = Guard.of(secure=True)
        comm.all_reduce(torch.ones(2, dtype=torch.int64), "aggregate")
        with pytest.raises(MessageRefused):
            comm.all_reduce(torch.ones(2), "aggregate")
    finally:
        comm.release()


def test_what_is_only_sent_in_some_runs_is_refused_in_the_others():
    losses, mean = ("float64", (20,), "cohort"), ("float64", (D + 1,), "clients' mean")
    for message in (losses, mean):
        assert not passes(Guard.of(clients=20), "all_reduce", *message)
    assert passes(Guard.of(clients=20, losses=True), "all_reduce", *losses)
    assert not passes(Guard.of(clients=19, losses=True), "all_reduce", *losses)
    assert passes(Guard.of(mean_of=D), "all_reduce", *mean)
    assert not passes(Guard.of(mean_of=D - 1), "all_reduce", *mean)


def functions():
    names = guards.OBJECTS + guards.AROUND
    return {(module, name): getattr(module, name, None) for module in guards.MODULES for name in names}


def test_functions_around_comm_are_refused_and_restored():
    before, comm = functions(), Comm.alone()
    comm.guard = Guard.of()
    for module, name in before:
        with pytest.raises(MessageRefused, match=name):
            getattr(module, name)(torch.ones(1))
    comm.guard = None
    assert functions() == before
    comm.guard = Guard.of()
    comm.close()
    assert comm.guard is None
    assert functions() == before


def test_functions_are_refused_until_the_last_guard_is_gone():
    before, first, second = functions(), Comm.alone(), Comm.alone()
    first.guard = second.guard = Guard.of()
    first.close()
    with pytest.raises(MessageRefused):
        torch.distributed.all_reduce(torch.ones(1))
    second.close()
    assert functions() == before


def test_every_function_with_objects_is_known():
    """A new one in torch would not be refused."""
    names = {n for n in dir(torch.distributed) if n.endswith(("_object", "_object_list"))}
    assert names == set(guards.OBJECTS)
