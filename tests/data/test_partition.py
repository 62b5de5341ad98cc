"""fedddp.data.partition: who owns which examples."""

import numpy as np
import pytest

from fedddp.data.partition import (
    IID,
    PARTITIONS,
    Dirichlet,
    DirichletLabels,
    FromFile,
    Labels,
    Natural,
    Overlapping,
    Partition,
    Quantity,
    Shards,
    Similarity,
)
from fedddp.rng import numpy_generator

DISJOINT = [
    IID(num_clients=7),
    IID(num_clients=1),
    Shards(num_clients=7),
    Shards(num_clients=10, shards_per_client=3),
    Dirichlet(num_clients=7, alpha=0.3),
    Dirichlet(num_clients=13, alpha=50.0),
    Quantity(num_clients=7),
    Quantity(num_clients=7, alpha=0.05, min_size=3),
    DirichletLabels(num_clients=7, alpha=0.5, min_size=2),
    Similarity(num_clients=7, similarity=0.3),
]
CASES = [*DISJOINT, Labels(num_clients=7), Overlapping(num_clients=7, size=20), Overlapping(num_clients=2000, size=9)]


def labels(n=503, classes=10, seed=0):
    return numpy_generator(seed, "labels").integers(classes, size=n)


def skewed():
    """Nine of ten examples have label 0; label 2 is absent."""
    return np.array([0] * 450 + [1] * 30 + [3] * 20)


def kinds(partition, y):
    """Different labels a client."""
    return (partition.counts(y, int(y.max()) + 1) > 0).sum(axis=1)


@pytest.mark.parametrize("partitioner", DISJOINT, ids=repr)
@pytest.mark.parametrize("y", [labels(), skewed()], ids=["even", "skewed"])
def test_every_example_belongs_to_exactly_one_client(partitioner, y):
    partition = partitioner.split(y, seed=3)
    assert partition.num_clients == partitioner.num_clients
    assert partition.sizes.min() >= 1
    assert np.array_equal(np.sort(partition.order), np.arange(len(y)))
    dealt = np.concatenate([partition.indices(k) for k in range(partition.num_clients)])
    assert np.array_equal(dealt, partition.order)


@pytest.mark.parametrize("partitioner", CASES, ids=repr)
def test_a_partition_is_a_function_of_its_seed(partitioner):
    y = labels()
    first, again, other = (partitioner.split(y, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.starts, again.starts)
    assert np.array_equal(first.sizes, again.sizes)
    assert not np.array_equal(first.order, other.order)


def test_every_partition_by_name_is_covered_here():
    given = {Natural, FromFile}  # see test_given_partitions
    assert {type(case) for case in CASES} == set(PARTITIONS.values()) - given


@pytest.mark.parametrize("num_clients", [1, 7, 100, 503])
def test_iid_sizes_differ_by_at_most_one(num_clients):
    sizes = IID(num_clients=num_clients).split(labels(), 0).sizes
    assert sizes.max() - sizes.min() <= 1


def test_iid_gives_every_client_the_global_mix():
    """1,000 examples a client of 10 even labels: 100 +- 5 standard deviations (9.5 each) of every label."""
    counts = IID(num_clients=10).split(labels(10_000), 0).counts(labels(10_000), 10)
    assert abs(counts - 100).max() < 50


def test_shards_give_few_labels_a_client():
    """100 even examples of each of 10 labels in 20 shards: none straddles two labels."""
    y = np.repeat(np.arange(10), 100)
    partition = Shards(num_clients=10).split(y, 0)
    assert set(partition.sizes) == {100}
    assert kinds(partition, y).max() == 2


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_straddling_shard_adds_one_label_at_most(shards):
    """Shards no larger than a label's 50 examples, cut where they fall: 10 labels have 9 borders to lie across."""
    y = np.repeat(np.arange(10), 50)
    found = kinds(Shards(num_clients=12, shards_per_client=shards).split(y, 0), y)
    assert found.max() <= 2 * shards
    assert found.sum() <= 12 * shards + 9


def test_shards_cover_several_examples_of_a_label_in_no_fixed_order():
    """Which examples of a label a client gets depends on the seed, not on their order in the file."""
    y = np.repeat(np.arange(2), 50)
    first, other = (Shards(num_clients=10, shards_per_client=1).split(y, seed) for seed in (0, 1))
    groups = [{frozenset(p.indices(k)) for k in range(10)} for p in (first, other)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("small", [0.01, 1e-300, 5e-324])
def test_small_alpha_gives_few_labels_and_large_alpha_the_global_mix(small):
    y = labels(5000)
    prior = np.bincount(y) / len(y)
    few = Dirichlet(num_clients=20, alpha=small).split(y, 0)
    many = Dirichlet(num_clients=20, alpha=1e6).split(y, 0)
    assert np.median(kinds(few, y)) <= 2
    mix = many.counts(y, 10) / many.sizes[:, None]
    assert abs(mix - prior)[:10].max() < 0.1  # 250 draws a client: a standard deviation is 0.02
    assert set(few.sizes) == set(many.sizes) == {250}


def test_the_global_mix_is_the_datas_own():
    """Nine in ten examples have label 0, so nine in ten of a client's 250 have: a standard deviation is 0.02."""
    y = np.array([0] * 4500 + [1] * 300 + [3] * 200)
    mix = Dirichlet(num_clients=20, alpha=1e6).split(y, 0).counts(y, 4) / 250
    assert abs(mix - [0.9, 0.06, 0, 0.04])[:10].max() < 0.1


def test_dirichlet_sizes_differ_by_at_most_one():
    sizes = Dirichlet(num_clients=7, alpha=0.1).split(labels(), 0).sizes
    assert sizes.max() - sizes.min() == 1


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-10, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("rule", [Dirichlet, Quantity])
def test_any_alpha_comes_to_an_end(rule, alpha):
    for y in (skewed(), labels()):
        for seed in range(5):
            partition = rule(num_clients=9, alpha=alpha).split(y, seed)
            assert np.array_equal(np.sort(partition.order), np.arange(len(y)))
            assert partition.sizes.min() >= 1


def test_quantity_makes_sizes_unequal_and_keeps_the_minimum():
    y = labels(5000)
    skew = Quantity(num_clients=10, alpha=0.1, min_size=20).split(y, 0).sizes
    even = Quantity(num_clients=10, alpha=1e6).split(y, 0).sizes
    assert skew.min() >= 20
    assert skew.max() > 1000
    assert abs(even - 500).max() < 10


@pytest.mark.parametrize(
    ("partitioner", "most"),
    [
        (IID(num_clients=21), 20),
        (Shards(num_clients=11), 10),
        (Dirichlet(num_clients=21), 20),
        (Quantity(num_clients=21), 20),
        (Quantity(num_clients=7, min_size=3), 6),
    ],
    ids=repr,
)
def test_impossible_requests_name_the_key_and_the_remedy(partitioner, most):
    with pytest.raises(ValueError, match="ask for at most") as error:
        partitioner.split(labels(20), 0)
    assert f"data.partition.num_clients={partitioner.num_clients}: " in str(error.value)
    assert str(error.value).endswith(f"ask for at most {most} clients")


def test_of_is_the_clients_indices_side_by_side():
    partition = Partition.dealt(np.array([5, 3, 1, 0, 2, 4]), np.array([2, 0, 3, 1]))
    assert [partition.indices(k).tolist() for k in range(4)] == [[5, 3], [], [1, 0, 2], [4]]
    assert partition.of(np.array([3, 1, 0])).tolist() == [4, 5, 3]
    assert partition.of(np.array([], dtype=int)).tolist() == []
    for clients in ([0, 1, 2, 3], [2], [2, 0, 1]):
        joined = np.concatenate([partition.indices(k) for k in clients])
        assert np.array_equal(partition.of(np.array(clients)), joined)


def test_ranges_may_overlap_and_lie_in_any_order():
    partition = Partition(np.array([5, 3, 1, 0]), np.array([2, 0, 1]), np.array([2, 2, 3]))
    assert partition.num_clients == 3
    assert [partition.indices(k).tolist() for k in range(3)] == [[1, 0], [5, 3], [3, 1, 0]]
    assert partition.of(np.array([2, 0])).tolist() == [3, 1, 0, 1, 0]
    assert partition.counts(np.array([0, 1, 0, 1, 1, 0]), 2).tolist() == [[1, 1], [1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("order", "starts", "sizes", "shares"),
    [
        ([5, 3, 1, 0], [0, 2], [2, 2], False),
        ([5, 3, 1, 0], [0, 1], [2, 2], True),  # fewer together than there are examples, and 3 belongs to both
        ([5, 3, 1, 0, 4, 2], [0, 0], [2, 1], True),  # one within the other
        ([5, 3, 1, 3], [0, 2], [2, 2], True),  # 3 stands in the order twice
        ([5, 3, 1, 3], [0, 2], [2, 1], False),  # but one of them is nobody's
        ([5, 3], [0, 1, 2, 1], [1, 1, 0, 0], False),  # clients without examples
        ([], [0], [0], False),
    ],
)
def test_whether_clients_share_examples(order, starts, sizes, shares):
    partition = Partition(np.array(order, dtype=np.int64), np.array(starts), np.array(sizes))
    assert partition.overlaps == shares


def test_counts_are_examples_a_client_and_label():
    partition = Partition.dealt(np.array([5, 3, 1, 0, 2, 4]), np.array([2, 0, 3, 1]))
    y = np.array([0, 1, 2, 0, 1, 2])
    assert partition.counts(y, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]
    assert partition.counts(y, 4, np.array([3, 0])).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize(("num_clients", "most", "rows"), [(5, 60, 5), (60, 60, 60), (1000, 60, 60), (9, 3, 3)])
def test_an_excerpt_is_a_few_clients_from_the_first_to_the_last(num_clients, most, rows):
    y = labels(5000)
    partition = Dirichlet(num_clients=num_clients).split(y, 0)
    shown = partition.excerpt(y, 10, most)
    assert shown.num_clients == num_clients
    assert len(shown.clients) == len(set(shown.clients)) == rows
    assert (shown.clients[0], shown.clients[-1]) == (0, num_clients - 1)
    assert np.diff(shown.clients).max() - np.diff(shown.clients).min() <= 1
    assert np.array_equal(shown.counts, partition.counts(y, 10)[shown.clients])


# -- the arrays against the loops that they stand for -----------------------------------------------------------


@pytest.mark.parametrize(("num_clients", "each"), [(7, 2), (33, 3), (250, 1)])
def test_shards_are_dealt_as_a_loop_would(num_clients, each):
    y, rng = labels(), numpy_generator(5, "partition")
    shuffled = rng.permutation(len(y))
    shards = np.array_split(shuffled[np.argsort(y[shuffled], kind="stable")], num_clients * each)
    hands = rng.permutation(len(shards)).reshape(num_clients, each)
    partition = Shards(num_clients=num_clients, shards_per_client=each).split(y, seed=5)
    for client, hand in enumerate(hands):
        assert partition.indices(client).tolist() == [i for shard in hand for i in shards[shard]]


@pytest.mark.parametrize("alpha", [1e-300, 0.1, 5.0])
@pytest.mark.parametrize("y", [labels(), skewed()], ids=["even", "skewed"])
def test_dirichlet_deals_as_a_loop_would(y, alpha):
    """Client after client takes from the end of each label's pile, then shuffles what it has."""
    rule, rng = Dirichlet(num_clients=40, alpha=alpha), numpy_generator(5, "partition")
    piles = [rng.permutation(np.flatnonzero(y == c)).tolist() for c in range(int(y.max()) + 1)]
    prior = np.array([len(pile) for pile in piles]) / len(y)
    hands = []
    for size in IID(num_clients=40).split(y, 0).sizes:
        left = np.array([len(pile) for pile in piles])
        taken = rule._take(rng, int(size), rule._mix(rng, prior), left)
        hands.append([i for pile, k in zip(piles, taken, strict=True) for i in pile[len(pile) - k :]])
        piles = [pile[: len(pile) - k] for pile, k in zip(piles, taken, strict=True)]
    partition = rule.split(y, seed=5)
    for client, hand in enumerate(hands):
        assert np.array_equal(partition.indices(client), rng.permutation(hand))
