"""How several machines find each other before their ranks start."""

import threading

import pytest
import torch.distributed as dist

from fedddp.comm.heartbeat import CommError
from fedddp.comm.machines import NAME, Machines, _joined
from fedddp.comm.store import TimedStore


@pytest.fixture
def store():
    timed = TimedStore(dist.HashStore(), set(), 5.0, "the store")
    yield timed
    timed.close()


def machines(number=None, count=3, patience=5.0):
    return Machines(1, count, number, "host:1", patience=patience)


def test_numbers_are_given_to_machines_as_they_come(store):
    found = []

    def join(number):
        found.append(_joined(store, machines(number)))

    threads = [threading.Thread(target=join, args=(number,)) for number in (0, None, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number for number, _ in found} == {0, 1, 2}
    assert {name for _, name in found} == {store.get(NAME).decode()}


def test_a_machine_that_does_not_come_is_named(store):
    store.set("machine/2", "")
    with pytest.raises(CommError, match=r"machine 1 of 3 did not come within 0\.3 s \(--join-timeout\)"):
        _joined(store, machines(0, patience=0.3))


@pytest.mark.parametrize(
    ("number", "named"), [(1, "machine 1 has come before"), (None, "all 3 have come to this start before")]
)
def test_one_machine_too_many_is_refused(store, number, named):
    for taken in range(3):
        store.add(f"machine/{taken}", 1)
    store.add("machines", 2)
    with pytest.raises(CommError, match=named):
        _joined(store, machines(number))
