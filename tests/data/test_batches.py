"""fedddp.data.batches: the index plan of local training."""

from itertools import chain

import pytest
import torch

from fedddp.data import num_steps, plan


def visits(p, k):
    """The examples of client row ``k``, step after step, without the padding."""
    return [p.index[k, t][p.mask[k, t]].tolist() for t in range(p.index.shape[1])]


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(20, 5, 4), (23, 5, 5), (3, 5, 1), (5, 5, 1), (1, 1, 1)])
def test_each_epoch_visits_every_example_once(n, batch_size, steps):
    p = plan([n], [4], 2, epochs=3, batch_size=batch_size, seed=0)
    batches = visits(p, 0)
    assert p.steps.tolist() == [3 * steps]
    assert len(batches) == 3 * steps
    epochs = [list(chain(*batches[e * steps : (e + 1) * steps])) for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 20 or (epochs[0] != epochs[1] and epochs[1] != epochs[2])


def test_only_the_last_batch_of_an_epoch_is_short():
    p = plan([7], [0], 0, epochs=2, batch_size=3, seed=0)
    assert [len(batch) for batch in visits(p, 0)] == [3, 3, 1, 3, 3, 1]


def test_clients_of_different_size_are_padded_and_masked():
    p = plan([5, 2, 0], [10, 11, 12], 0, epochs=2, batch_size=2, seed=0)
    assert p.index.shape == p.mask.shape == (3, 6, 2)
    assert p.steps.tolist() == [6, 2, 0]
    assert p.mask.sum(dim=2).tolist() == [[2, 2, 1, 2, 2, 1], [2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert (p.index[~p.mask] == 0).all()


def test_batch_size_zero_takes_a_clients_whole_data():
    p = plan([5, 2], [0, 1], 0, epochs=2, batch_size=0, seed=0)
    assert p.steps.tolist() == [2, 2]
    assert p.mask.sum(dim=2).tolist() == [[5, 5], [2, 2]]
    assert [sorted(batch) for batch in visits(p, 1)] == [[0, 1], [0, 1]]


def test_a_clients_order_does_not_depend_on_the_others_in_the_plan():
    together = plan([9, 30, 4], [3, 8, 5], 6, epochs=2, batch_size=4, seed=1)
    for row, (n, client) in enumerate([(9, 3), (30, 8), (4, 5)]):
        alone = plan([n], [client], 6, epochs=2, batch_size=4, seed=1)
        assert visits(alone, 0) == [batch for batch in visits(together, row) if batch]


def test_the_order_depends_on_seed_round_and_client():
    orders = [
        visits(plan([30], [client], round, epochs=1, batch_size=30, seed=seed), 0)[0]
        for client, round, seed in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert visits(plan([30], [0], 0, epochs=1, batch_size=30, seed=0), 0)[0] == orders[0]


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_nobody_and_nothing_make_an_empty_plan(sizes):
    for batch_size in (0, 3):
        p = plan(sizes, list(range(len(sizes))), 0, epochs=2, batch_size=batch_size, seed=0)
        assert p.index.shape == (len(sizes), 0, 0)
        assert torch.equal(p.steps, torch.zeros(len(sizes), dtype=torch.long))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("batch_size", [0, 1, 7, 100])
def test_num_steps_are_those_of_the_plan(epochs, batch_size):
    sizes = [0, 1, 6, 7, 8, 14, 600]
    p = plan(sizes, list(range(7)), 0, epochs=epochs, batch_size=batch_size, seed=0)
    for given in (torch.tensor(sizes), torch.tensor(sizes, dtype=torch.int32)):
        assert num_steps(given, epochs, batch_size).tolist() == p.steps.tolist()


@pytest.mark.parametrize(
    ("n", "batch_size", "lengths"),
    [
        (11, 5, [5, 6]),
        (6, 5, [6]),
        (21, 10, [10, 11]),
        (3, 2, [3]),
        (12, 5, [5, 5, 2]),
        (10, 5, [5, 5]),
        (4, 5, [4]),
        (1, 5, [1]),
        (3, 1, [1, 1, 1]),
        (7, 0, [7]),
    ],
)
def test_a_last_example_alone_joins_the_batch_before(n, batch_size, lengths):
    how = {"epochs": 2, "batch_size": batch_size, "seed": 0}
    joined, apart = plan([n], [4], 2, smallest=2, **how), plan([n], [4], 2, **how)
    assert [len(batch) for batch in visits(joined, 0)] == lengths * 2
    assert list(chain(*visits(joined, 0))) == list(chain(*visits(apart, 0)))  # the same examples in the same order
    assert (joined.index[~joined.mask] == 0).all()


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("batch_size", [0, 1, 2, 7, 13])
def test_num_steps_of_batches_that_join(epochs, batch_size):
    sizes = [0, 1, 6, 7, 8, 14, 15, 601]
    p = plan(sizes, list(range(8)), 0, epochs=epochs, batch_size=batch_size, seed=0, smallest=2)
    assert num_steps(torch.tensor(sizes), epochs, batch_size, 2).tolist() == p.steps.tolist()
    assert [sum(map(len, visits(p, k))) for k in range(8)] == [epochs * n for n in sizes]
    for k, n in enumerate(sizes):
        alone = plan([n], [k], 0, epochs=epochs, batch_size=batch_size, seed=0, smallest=2)
        assert visits(alone, 0) == [batch for batch in visits(p, k) if batch]


def test_steps_that_stop_within_a_pass_of_joined_batches():
    most = plan([7, 4], [0, 1], 0, batch_size=3, seed=0, steps=torch.tensor([5, 3]), smallest=2)
    assert [len(batch) for batch in visits(most, 0)] == [3, 4, 3, 4, 3]
    assert [len(batch) for batch in visits(most, 1)][:3] == [4, 4, 4]
