"""fedddp.data.labels: every kind of label is numbered without loss, or refused in one line."""

import numpy as np
import pytest
import torch

from fedddp.data import Dataset
from fedddp.data.labels import numbered, numbers
from fedddp.errors import UsageError

TWO = [0, 1]


def refused(code, attempt, *args, **more):
    """The one line by which ``attempt`` is refused."""
    with pytest.raises(UsageError) as error:
        attempt(*args, **more)
    assert error.value.code == code
    assert "\n" not in str(error.value)
    return str(error.value)


def both(values, test=None, **how):
    return numbered(values, values if test is None else test, **how)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2, 1],
        (0, 1, 2, 1),
        np.array([0, 1, 2, 1], dtype=np.uint8),
        np.array([0.0, 1.0, 2.0, 1.0]),
        np.array([[0], [1], [2], [1]]),
        torch.tensor([0, 1, 2, 1], dtype=torch.int16),
        torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.bfloat16),
        torch.tensor([[0.0], [1.0], [2.0], [1.0]]),
        [torch.tensor(0), torch.tensor(1), torch.tensor(2), torch.tensor(1)],
        [np.int64(0), np.int64(1), np.int64(2), np.int64(1)],
        np.array([0, 1, 2, 1], dtype=object),
        np.array([0, 1, 2, 1], dtype=">i4"),
    ],
    ids=repr,
)
def test_whole_numbers_from_0_stay_whatever_their_type(values):
    labels = both(values)
    assert (labels.train.dtype, labels.train.tolist()) == (torch.int64, [0, 1, 2, 1])
    assert torch.equal(labels.test, labels.train)
    assert (labels.num_classes, labels.remarks) == (3, ())


@pytest.mark.parametrize("values", [[True, False], np.array([True, False]), torch.tensor([[True], [False]])], ids=repr)
def test_bools_are_two_classes(values):
    assert both(values).train.tolist() == [1, 0]
    assert both(values).remarks == ()


@pytest.mark.parametrize(
    ("values", "expected", "shown"),
    [
        ([1, 2, 3, 2], [0, 1, 2, 1], "1, 2, 3"),
        ([-1, 1, 1, -1], [0, 1, 1, 0], "-1, 1"),
        (np.array([-1.0, 1.0, -1.0, 1.0]), [0, 1, 0, 1], "-1, 1"),
        ([10, 100000, 20, 10] * 2, [0, 2, 1, 0] * 2, "10, 20, 100000"),
        ([0, 4, 4, 0], [0, 1, 1, 0], "0, 4"),
        ([0, 2**62, 0, 2**62], [0, 1, 0, 1], f"0, {2**62}"),
        (["cat", "dog", "bird", "cat"], [1, 2, 0, 1], "bird, cat, dog"),
        (np.array(["b", "a", "b", "a"], dtype=object), [1, 0, 1, 0], "a, b"),
        (np.array([b"b", b"a", b"b", b"a"]), [1, 0, 1, 0], "a, b"),
        (np.array([["b"], ["a"], ["b"], ["a"]]), [1, 0, 1, 0], "a, b"),
        (["10", "9", "10", "9"], [0, 1, 0, 1], "10, 9"),
    ],
)
def test_other_labels_are_numbered_in_sorted_order_and_said(values, expected, shown):
    labels = both(values)
    assert (labels.train.tolist(), labels.test.tolist()) == (expected, expected)
    assert labels.num_classes == max(expected) + 1
    assert len(labels.remarks) == 1
    assert f"labels are {shown}, " in labels.remarks[0]


def test_many_labels_are_listed_in_short():
    labels = both(list(range(1, 41)))
    assert "labels are 1, 2, 3, 4, 5, ..., 40, " in labels.remarks[0]


def test_both_sets_are_numbered_alike():
    labels = numbered(["b", "c", "a"], ["c", "a"])
    assert (labels.train.tolist(), labels.test.tolist()) == ([1, 2, 0], [2, 0])
    labels = numbered([7, 900, 30, 7, 900, 30], [30])
    assert (labels.train.tolist(), labels.test.tolist()) == ([0, 2, 1, 0, 2, 1], [1])


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_one_hot_rows_are_the_classes_of_their_columns(dtype):
    labels = both(np.eye(3, dtype=dtype)[[2, 0, 0, 2]])
    assert labels.train.tolist() == [2, 0, 0, 2]
    assert labels.num_classes == 3  # a column is a class, whether it has an example or not
    assert len(labels.remarks) == 1


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1, 2], [0, 3], ("1 of 2 test", "(3)")),
        (["a", "b"], ["a", "A", "A"], ("2 of 3 test", "(A)")),
        ([5, 700] * 3, [700, 9], ("1 of 2 test", "(9)")),
    ],
)
def test_a_label_that_only_the_test_set_has_is_refused_unless_the_classes_are_declared(train, test, said):
    with pytest.raises(UsageError) as refused:
        numbered(train, test)
    remark = numbered(train, test, 1000).remarks[0]
    assert all(word in text for word in said for text in (str(refused.value), remark))


def test_few_gaps_stay_and_are_said():
    labels = both([0, 1, 3, 4])
    assert (labels.train.tolist(), labels.num_classes) == ([0, 1, 3, 4], 5)
    assert labels.remarks == ("labels are 0 to 4, of which no example has 2",)


def test_whoever_says_how_many_classes_there_are_keeps_the_numbers():
    labels = both([1, 2, 40], num_classes=50)
    assert (labels.train.tolist(), labels.num_classes, labels.remarks) == ([1, 2, 40], 50, ())
    assert both([3, 3], num_classes=10).num_classes == 10
    assert both(["x", "y"], num_classes=4).num_classes == 4
    assert "label 40 of training example 2 " in refused("labels-outside", both, [1, 2, 40], num_classes=10)
    assert "label 10 of test example 1 " in refused("labels-outside", numbered, [1, 2], [1, 10], num_classes=10)
    refused("num-classes", both, ["x", "y"], num_classes=1)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([0.25, 0.5], "labels-not-whole"),
        ([0.0, 1.0, 1.5], "labels-not-whole"),
        ([0.0, 1e300], "labels-not-whole"),
        (torch.tensor([0.5, 1.0], dtype=torch.float16), "labels-not-whole"),
        ([0.0, float("nan"), float("nan")], "labels-not-finite"),
        ([0.0, float("inf")], "labels-not-finite"),
        ([0, None], "labels-mixed"),
        (["a", 1], "labels-mixed"),
        ([0, "1"], "labels-mixed"),
        (np.array(["a", None], dtype=object), "labels-mixed"),
        ([1 + 1j, 2], "labels-type"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), "labels-type"),
        ([{"a": 1}, {"a": 2}], "labels-type"),
        ([[0, 1], [1]], "labels-form"),
        (np.eye(3)[[0, 1]] * 0.5, "labels-form"),
        (np.ones((4, 3)), "labels-form"),
        (np.zeros((4, 2), int), "labels-form"),
        (np.zeros((4, 3, 2), int), "labels-form"),
        (3, "labels-type"),
        (np.int64(3), "labels-type"),
        ("cat", "labels-type"),
        ([], "dataset-empty"),
        ([2, 2, 2], "labels-single"),
        (["a", "a"], "labels-single"),
        ([True, True], "labels-single"),
        ([-1, 0, 1], "labels-negative"),
        ([-100, 0, 1, 2], "labels-negative"),
        ([-2, -1, 1, 2], "labels-negative"),
        ([180000, 75000, 1200, 9400000, 33, 6100], "labels-measurements"),
        (np.array([2**64 - 1, 0], dtype=np.uint64), "labels-range"),
    ],
    ids=repr,
)
def test_what_is_no_class_is_refused_in_one_line(values, code):
    refused(code, numbered, values, values[:1] if isinstance(values, list | np.ndarray) else values)


@pytest.mark.parametrize(
    ("train", "test", "code"),
    [
        (TWO, [5, 6], "labels-disjoint"),
        (["cat", "dog"], ["Cat", "Dog"], "labels-disjoint"),
        (["0", "1"], TWO, "labels-sets-differ"),
        (np.eye(2), TWO, "labels-sets-differ"),
        (np.eye(3), np.eye(4), "labels-sets-differ"),
        (TWO, [0.5, 1], "labels-not-whole"),
        (TWO, [], "dataset-empty"),
    ],
    ids=repr,
)
def test_sets_that_do_not_fit_together_are_refused(train, test, code):
    refused(code, numbered, train, test)


def test_owners_are_any_whole_numbers_or_text():
    assert numbers([7, -3, 7], "client_ids").tolist() == [7, -3, 7]
    assert numbers(np.array([7.0, 3.0]), "client_ids").tolist() == [7, 3]
    assert numbers(["eve", "bob", "eve"], "client_ids").tolist() == [1, 0, 1]
    for values, code in (([0.5, 1], "labels-not-whole"), ([[1, 2]], "labels-form"), ([1, None], "labels-mixed")):
        assert "client_ids" in refused(code, numbers, values, "client_ids")


def test_a_dataset_says_what_became_of_its_labels_once_and_on_rank_0_alone(monkeypatch):
    said = []
    monkeypatch.setattr("fedddp.data.datasets.log.warning", lambda form, *args: said.append(form % args))
    part = np.zeros((6, 2), dtype=np.float32), list("abcabc")
    assert Dataset.of(part, part).num_classes == 3
    assert said == ["labels are a, b, c, numbered in this order as the classes 0 to 2"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    Dataset.of(part, part)
    assert len(said) == 1
