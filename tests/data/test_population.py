"""A population larger than the data: what a client costs, and that nothing goes through it one by one."""

import sys
import tracemalloc

import numpy as np
import pytest
import torch

from fedddp.data import ClientData, Examples, Normalizer
from fedddp.data.partition import IID, Overlapping, Shards
from fedddp.rng import numpy_generator

MILLION = 1_000_000


def labels(n=503, classes=10):
    return numpy_generator(0, "labels").integers(classes, size=n)


@pytest.mark.parametrize(("num_clients", "size"), [(1, 503), (7, 20), (2000, 9), (2000, 503), (503, 1)])
def test_overlapping_clients_own_their_size_of_different_examples(num_clients, size):
    partition = Overlapping(num_clients=num_clients, size=size).split(labels(), 0)
    assert partition.num_clients == num_clients
    assert set(partition.sizes) == {size}
    own = partition.of(np.arange(num_clients)).reshape(num_clients, size)
    assert all(len(set(row)) == size for row in own.tolist())
    assert 0 <= own.min() <= own.max() < 503
    owners = np.bincount(own.ravel(), minlength=503)
    assert owners.max() - owners.min() <= 1


def test_nobody_shares_while_there_is_enough_for_all():
    own = Overlapping(num_clients=8, size=60).split(labels(), 0).of(np.arange(8))
    assert len(set(own.tolist())) == 480


def test_clients_are_different_stretches_of_one_shuffled_order():
    partition = Overlapping(num_clients=503, size=30).split(labels(), 0)
    around = np.concatenate([partition.order[:503]] * 2)
    assert np.array_equal(np.sort(around[:503]), np.arange(503))
    assert not np.array_equal(around[:503], np.arange(503))
    for client in (0, 1, 400, 502):
        assert np.array_equal(partition.indices(client), around[client : client + 30])


def test_a_client_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"data.partition.size=504: there are only 503 examples; ask for at most 503"):
        Overlapping(num_clients=2, size=504).split(labels(), 0)


def used_by(make):
    """What a call returns, the bytes it leaves, and those it takes at most."""
    tracemalloc.start()
    try:
        return make(), *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_a_million_clients_cost_a_start_and_a_size_each():
    y = labels(60_000)
    partition, left, peak = used_by(lambda: Overlapping(num_clients=MILLION).split(y, 0))
    assert partition.num_clients == MILLION
    assert left < 9 * MILLION  # 4 bytes a start, 4 bytes a size, 240 kB of order
    assert peak < 50 * MILLION


def test_a_picture_of_a_million_clients_counts_those_it_shows():
    y = labels(60_000)
    partition = Overlapping(num_clients=MILLION).split(y, 0)
    excerpt, _, peak = used_by(lambda: partition.excerpt(y, 10))
    assert excerpt.clients[-1] == MILLION - 1
    assert (excerpt.counts.sum(axis=1) == 60).all()
    assert peak < MILLION


@pytest.mark.parametrize("placement", ["home", "shared"])
def test_a_million_clients_data_is_the_datasets(placement):
    """Also at home: what several own is held once."""
    y = labels(2000)
    examples = Examples(torch.zeros(2000, 1, 28, 28, dtype=torch.uint8), torch.from_numpy(y))
    partition = Overlapping(num_clients=MILLION).split(y, 0)
    normalize = Normalizer((0.5,), (0.5,), torch.float32, torch.device("cpu"))
    data = ClientData(examples, partition, normalize, rank=1, world_size=2, placement=placement)
    assert data.num_clients == MILLION
    assert len(data._x) <= 2000 + 60
    client = MILLION - 1
    assert data.examples(client)[1].tolist() == y[partition.indices(client)].tolist()
    assert data.gather([client], torch.tensor([[[59]]]))[1].tolist() == [[[y[partition.indices(client)[59]]]]]


@pytest.mark.parametrize("rule", [IID, Shards])
def test_dealing_to_as_many_clients_as_examples_calls_nothing_a_client(rule):
    """Counted, not timed: the calls from Python do not grow with N."""

    def calls(num_clients):
        count = 0

        def note(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            rule(num_clients=num_clients).split(labels(60_000), 0)
        finally:
            sys.setprofile(None)
        return count

    assert calls(20_000) == calls(20)


@pytest.mark.parametrize(("num_clients", "size"), [(8, 60), (4, 120), (9, 60), (2000, 9)])
def test_a_partition_knows_whether_an_example_has_several_owners(num_clients, size):
    partition = Overlapping(num_clients=num_clients, size=size).split(labels(), 0)
    owners = np.bincount(partition.of(np.arange(num_clients)), minlength=len(labels()))
    assert partition.overlaps == (owners.max() > 1)
    assert not IID(num_clients=7).split(labels(), 0).overlaps
