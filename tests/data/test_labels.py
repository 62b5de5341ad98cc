"""fedddp.data.labels: every kind of label is numbered without loss, or refused in one line."""

import numpy as np
import pytest
import torch

from fedddp.data import Dataset
from fedddp.data.labels import numbered, numbers

TWO = [0, 1]


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
def test_a_label_that_only_the_test_set_has_is_said(train, test, said):
    remark = numbered(train, test).remarks[0]
    assert all(word in remark for word in said)


def test_few_gaps_stay_and_are_said():
    labels = both([0, 1, 3, 4])
    assert (labels.train.tolist(), labels.num_classes) == ([0, 1, 3, 4], 5)
    assert labels.remarks == ("labels are 0 to 4, of which no example has 2",)


def test_whoever_says_how_many_classes_there_are_keeps_the_numbers():
    labels = both([1, 2, 40], num_classes=50)
    assert (labels.train.tolist(), labels.num_classes, labels.remarks) == ([1, 2, 40], 50, ())
    assert both([3, 3], num_classes=10).num_classes == 10
    assert both(["x", "y"], num_classes=4).num_classes == 4
    with pytest.raises(ValueError, match=r"label 40 of training example 2 is outside 0 to 9: there are 10"):
        both([1, 2, 40], num_classes=10)
    with pytest.raises(ValueError, match=r"label 10 of test example 1 is outside 0 to 9"):
        numbered([1, 2], [1, 10], num_classes=10)
    with pytest.raises(ValueError, match=r"num_classes=1: there are 2"):
        both(["x", "y"], num_classes=1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.25, 0.5], r"training labels: targets are not whole numbers \(that of example 0 is 0.25\)"),
        ([0.0, 1.0, 1.5], r"not whole numbers \(that of example 2"),
        ([0.0, 1e300], "not whole numbers"),
        (torch.tensor([0.5, 1.0], dtype=torch.float16), "not whole numbers"),
        ([0.0, float("nan"), float("nan")], r"2 of 3 training labels are NaN or infinite, first that of example 1"),
        ([0.0, float("inf")], r"1 of 2 training labels are NaN or infinite"),
        ([0, None], r"several kinds: that of example 1 is None"),
        (["a", 1], r"several kinds: that of example 1 is 1"),
        ([0, "1"], r"several kinds: that of example 1 is '1'"),
        (np.array(["a", None], dtype=object), r"several kinds: that of example 1 is None"),
        ([1 + 1j, 2], r"training labels are complex128"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), r"training labels are datetime64"),
        ([{"a": 1}, {"a": 2}], r"training labels are object"),
        ([[0, 1], [1]], "differ in shape"),
        (np.eye(3)[[0, 1]] * 0.5, r"\[2, 3\] and not one-hot"),
        (np.ones((4, 3)), r"\[4, 3\] and not one-hot"),
        (np.zeros((4, 2), int), r"\[4, 2\] and not one-hot"),
        (np.zeros((4, 3, 2), int), r"are \[4, 3, 2\]"),
        (3, r"training labels are 3; give a list"),
        (np.int64(3), r"training labels are int64"),
        ("cat", r"training labels are 'cat'"),
        ([], "the training set has no examples"),
        ([2, 2, 2], "every training label is 2: there is nothing to tell apart"),
        (["a", "a"], "every training label is a"),
        ([True, True], "every training label is 1"),
        ([-1, 0, 1], "negative ones often mean that there is no label"),
        ([-100, 0, 1, 2], "negative ones"),
        ([-2, -1, 1, 2], "negative ones"),
        ([180000, 75000, 1200, 9400000, 33, 6100], r"6 different ones among 7 examples: these are measurements or"),
        (np.array([2**64 - 1, 0], dtype=np.uint64), "does not fit into int64"),
    ],
    ids=repr,
)
def test_what_is_no_class_is_refused_in_one_line(values, reason):
    with pytest.raises(ValueError, match=reason) as error:
        numbered(values, values[:1] if isinstance(values, list | np.ndarray) else values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        (TWO, [5, 6], r"no label of the test set \(5, 6\) occurs in the training set \(0, 1\)"),
        (["cat", "dog"], ["Cat", "Dog"], "no label of the test set"),
        (["0", "1"], TWO, "training labels are text, the test labels whole numbers"),
        (np.eye(2), TWO, "training labels are one-hot rows of 2, the test labels whole numbers"),
        (np.eye(3), np.eye(4), "one-hot rows of 3, the test labels one-hot rows of 4"),
        (TWO, [0.5, 1], "test labels: targets are not whole"),
        (TWO, [], "the test set has no examples"),
    ],
    ids=repr,
)
def test_sets_that_do_not_fit_together_are_refused(train, test, reason):
    with pytest.raises(ValueError, match=reason):
        numbered(train, test)


def test_owners_are_any_whole_numbers_or_text():
    assert numbers([7, -3, 7], "client_ids").tolist() == [7, -3, 7]
    assert numbers(np.array([7.0, 3.0]), "client_ids").tolist() == [7, 3]
    assert numbers(["eve", "bob", "eve"], "client_ids").tolist() == [1, 0, 1]
    for values, reason in (([0.5, 1], "not whole"), ([[1, 2]], r"are \[1, 2\]"), ([1, None], "kinds")):
        with pytest.raises(ValueError, match=f"client_ids.*{reason}"):
            numbers(values, "client_ids")


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
