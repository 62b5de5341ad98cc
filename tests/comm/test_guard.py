"""The allow-list: what the protocol contains passes, a raw update beside it does not, whatever its purpose says."""

import pytest
import torch
import torch.distributed

from fedddp.comm import Comm, CommError, Refused
from fedddp.comm import guard as guards
from fedddp.comm.guard import Guard, Rule

D = 1_663_370  # McMahan's CNN


def passes(guard, op, dtype, shape, purpose):
    size = torch.Size(shape).numel() * (torch.empty(0, dtype=getattr(torch, dtype)).element_size())
    try:
        guard.check(op, dtype, tuple(shape), size, purpose)
    except Refused:
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
    assert not any(passes(guard, "all_reduce", "uint8", (9,), f"secure {step}") for step in guards.SECURE)


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
        for purpose in guard.rules.keys() - {"aggregate", "distribute the model", "resume"}:
            for dtype in ("float32", "float64", "bfloat16", "int64", "int32"):
                for op in ("all_reduce", "broadcast"):
                    assert not passes(guard, op, dtype, (199_210,), purpose), (purpose, dtype, op)


def test_the_refusal_names_what_was_tried_and_what_would_pass():
    guard = Guard({"a": (Rule("all_reduce", ("int64", "int32"), 80), Rule("broadcast", ("uint8",)))})
    guard.check("all_reduce", "int64", (10,), 80, "a")
    guard.check("broadcast", "uint8", (10_000,), 10_000, "a")
    with pytest.raises(CommError) as caught:
        guard.check("all_reduce", "int64", (11,), 88, "a")
    assert str(caught.value) == (
        "privacy.guard refuses all_reduce of int64 [11] (88 bytes) for 'a'; "
        "allowed: all_reduce of int64 or int32 up to 80 bytes or broadcast of uint8"
    )
    with pytest.raises(Refused, match=r"for 'b'; allowed: nothing: known purposes are a$"):
        guard.check("all_reduce", "int64", (1,), 8, "b")
    guard.with_("b", Rule("all_reduce", ("int64",))).check("all_reduce", "int64", (1,), 8, "b")


def test_alone_the_same_is_refused():
    comm = Comm.alone()
    try:
        comm.guard = Guard.of(secure=True)
        comm.all_reduce(torch.ones(2, dtype=torch.int64), "aggregate")
        with pytest.raises(Refused):
            comm.all_reduce(torch.ones(2), "aggregate")
    finally:
        guards.restore()


def test_functions_around_comm_are_refused_and_restored():
    before = {name: getattr(torch.distributed, name) for name in guards.OBJECTS + guards.AROUND}
    comm = Comm.alone()
    try:
        comm.guard = Guard.of()
        for name in before:
            with pytest.raises(Refused, match=name):
                getattr(torch.distributed, name)(torch.ones(1))
            with pytest.raises(Refused, match=name):
                getattr(torch.distributed.distributed_c10d, name)(torch.ones(1))
        comm.guard = None
        assert all(getattr(torch.distributed, name) is before[name] for name in guards.AROUND)
        with pytest.raises(Refused):
            torch.distributed.all_gather_object([], None)
    finally:
        guards.restore()
    assert {name: getattr(torch.distributed, name) for name in before} == before


def test_every_function_with_objects_is_known():
    """A new one in torch would not be refused."""
    names = {n for n in dir(torch.distributed) if n.endswith(("_object", "_object_list"))}
    assert names == set(guards.OBJECTS)
