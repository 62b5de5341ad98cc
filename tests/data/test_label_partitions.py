"""NIID-Bench's partitions by label: so many labels a client, and each label divided by a Dirichlet draw."""

import numpy as np
import pytest

from fedddp.data.partition import DirichletLabels, Labels
from fedddp.rng import numpy_generator


def even(classes=10, each=60):
    return np.repeat(np.arange(classes), each)


@pytest.mark.parametrize(("num_clients", "k"), [(10, 2), (10, 1), (10, 3), (7, 2), (4, 3), (10, 10), (100, 2), (1, 10)])
def test_every_client_owns_k_labels_and_every_label_has_an_owner(num_clients, k):
    y = even(each=1000)
    counts = Labels(num_clients=num_clients, labels_per_client=k).split(y, 3).counts(y, 10)
    assert ((counts > 0).sum(axis=1) == k).all()
    assert (counts.sum(axis=0) == 1000).all()
    for label in counts.T:  # split evenly among its owners
        shares = label[label > 0]
        assert shares.max() - shares.min() <= 1


def test_with_one_label_a_client_ten_clients_own_one_label_each():
    y = even()
    assert np.array_equal(Labels(num_clients=10, labels_per_client=1).split(y, 0).counts(y, 10), 60 * np.eye(10))


def test_absent_labels_have_no_owner():
    y = np.array([2] * 30 + [5] * 10)
    counts = Labels(num_clients=2, labels_per_client=1).split(y, 0).counts(y, 6)
    assert counts.tolist() == [[0, 0, 30, 0, 0, 0], [0, 0, 0, 0, 0, 10]]


def test_who_shares_a_label_depends_on_the_seed():
    owned = [Labels(num_clients=10)._owned(numpy_generator(seed, "partition", 1), 10) for seed in range(5)]
    assert len({own.tobytes() for own in owned}) == 5
    assert all(own.diagonal().all() for own in owned)  # client i begins with label i


@pytest.mark.parametrize(
    ("rule", "y", "message"),
    [
        (Labels(num_clients=3), even(2), None),
        (
            Labels(num_clients=3, labels_per_client=3),
            even(2),
            "data.partition.labels_per_client=3: the data have 2; ask for at most that",
        ),
        (
            Labels(num_clients=3, labels_per_client=2),
            even(10),
            "data.partition.labels_per_client=2: 3 clients of 2 cannot own all 10 labels; "
            "ask for at least 4, or for 5 clients",
        ),
        (
            Labels(num_clients=40, labels_per_client=1),
            even(10, 3),
            "data.partition.num_clients=40: 4 clients would own the 3 examples of label 0; "
            "ask for fewer clients, or fewer labels_per_client",
        ),
    ],
)
def test_impossible_labels_are_refused_by_name(rule, y, message):
    if message is None:
        assert rule.split(y, 0).num_clients == 3
        return
    with pytest.raises(ValueError, match="ask for") as error:
        rule.split(y, 0)
    assert str(error.value) == message


@pytest.mark.parametrize("min_size", [1, 10, 40])
def test_dirichlet_labels_keep_the_minimum_and_lose_nothing(min_size):
    y = even(each=100)
    for seed in range(5):
        partition = DirichletLabels(num_clients=10, alpha=0.5, min_size=min_size).split(y, seed)
        assert partition.sizes.min() >= min_size
        assert np.array_equal(np.sort(partition.order), np.arange(1000))


def test_dirichlet_labels_are_divided_as_the_loop_of_niid_bench_does():
    """Label after label, by cumulated shares of those that have less than an even share of everything."""
    y, n = even(5, 80), 4
    rule = DirichletLabels(num_clients=n, alpha=0.5, min_size=60)
    for seed in range(4):
        rng = numpy_generator(seed, "partition")
        while True:
            hands = np.zeros((n, 5), dtype=int)
            for c in range(5):
                share = rng.dirichlet(np.full(n, 0.5))
                share = np.array([s * (hand.sum() < len(y) / n) for s, hand in zip(share, hands, strict=True)])
                cuts = (np.cumsum(share / share.sum()) * 80).astype(int)[:-1]
                hands[:, c] = [len(part) for part in np.split(np.arange(80), cuts)]
            if hands.sum(axis=1).min() >= 60:
                break
        assert abs(rule.split(y, seed).counts(y, 5) - hands).max() <= 1  # a stray example, see `_divide`


def test_a_small_alpha_gives_a_label_few_owners_and_a_large_one_all():
    y = even(each=1000)
    few = DirichletLabels(num_clients=5, alpha=0.05).split(y, 0).counts(y, 10)
    many = DirichletLabels(num_clients=5, alpha=1e6).split(y, 0).counts(y, 10)
    assert (few > 50).sum(axis=0).mean() < 2.5
    assert abs(many[:, 0] - 200).max() < 5
    sizes = DirichletLabels(num_clients=5, alpha=0.5).split(y, 0).sizes
    assert sizes.max() > 1.3 * sizes.min()  # unequal, unlike `Dirichlet`


def test_a_minimum_that_no_draw_reaches_is_refused_by_name():
    rule = DirichletLabels(num_clients=15, alpha=1e-3)  # ten labels, an owner each
    with pytest.raises(
        ValueError, match=r"^data\.partition\.min_size=10: 1000 draws with alpha=0\.001 .* larger alpha$"
    ):
        rule.split(even(each=100), 0)
    with pytest.raises(ValueError, match=r"^data\.partition\.num_clients=101: .* at most 100 clients$"):
        DirichletLabels(num_clients=101).split(even(each=100), 0)
