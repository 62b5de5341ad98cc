"""fedddp.data.reading, inputs, constructing: what a user's dataset may be, and the line for another one."""

import random
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fedddp.data import Dataset, Partition
from fedddp.data.reading import _is_columns
from fedddp.registry.torchvision_operators import torchvision_class
from tests.helpers.datasets import PAIR, Items, N, X, Y, mnist, refused


class Pictures(Items):
    """As torchvision's: raw data and targets, transforms in __getitem__."""

    def __init__(self, transform=None, target_transform=None):
        self.data, self.targets = torch.arange(N * 9, dtype=torch.uint8).view(N, 3, 3), torch.arange(N) % 3 + 1
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = self.data[i], int(self.targets[i])
        return self.transform(x) if self.transform else x, self.target_transform(y) if self.target_transform else y


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0], 0


# -- transforms ---------------------------------------------------------------------------------------------------


def test_transforms_are_applied():
    data = Dataset.of(*(Pictures(lambda x: x.float() + 7, lambda y: y - 1) for _ in range(2)))
    assert torch.equal(data.train.x, Pictures().data.float() + 7)
    assert data.test.y.tolist() == Y.tolist()
    only_targets = Dataset.of(*(Pictures(None, lambda y: 3 - y) for _ in range(2)))
    assert only_targets.train.y.tolist() == (2 - Y).tolist()
    assert only_targets.train.x.dtype == torch.uint8


def test_what_a_class_yields_counts_without_attributes_too():
    """A transform in __getitem__ itself, beside raw data and targets."""

    class Own(Pictures):
        def __getitem__(self, i):
            return self.data[i] / 255, int(self.targets[i]) % 3

    data = Dataset.of(Own(), Own())
    assert torch.equal(data.train.x, Pictures().data / 255)
    assert data.train.y.tolist() == ((Y + 1) % 3).tolist()


OWN = np.random.default_rng(0)
DRAWS = {
    "torch": lambda x: x + torch.rand(()),
    "numpy": lambda x: x + np.random.rand(),
    "random": lambda x: x + random.random(),
    "flip": lambda x: x.flip(-1) if torch.rand(()) < 0.5 else x,
    "own": lambda x: x + OWN.random(),
    "erase": lambda x: x * (torch.rand(()) < 0.9),
    "rare": lambda x: 255 - x if random.random() < 0.02 else x,
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_transforms_are_refused(name):
    refused("dataset", "transform-random", Dataset.of, Pictures(DRAWS[name]), PAIR)


def test_random_targets_are_refused_and_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    random_targets = Pictures(target_transform=lambda y: y + random.randrange(10**6))
    refused("dataset", "transform-random", Dataset.of, Pictures(), random_targets)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_nan_is_the_same_when_it_is_read_again():
    nan = Items(lambda i: (torch.full((2,), float("nan")), i % 3))
    refused("dataset", "inputs-not-finite", Dataset.of, nan, PAIR)


def test_a_transform_that_nothing_applies_is_refused():
    class Raw:
        data, targets, transform = X, Y, abs

    refused("dataset", "transform-unapplied", Dataset.of, Raw(), PAIR)


def test_torchvision_without_transforms_is_read_from_data_and_targets(tmp_path):
    mnist(tmp_path)
    cls = torchvision_class("MNIST")
    plain = cls(str(tmp_path))
    assert _is_columns(plain, "training")
    assert not _is_columns(cls(str(tmp_path), transform=np.asarray), "training")
    assert not _is_columns(cls(str(tmp_path), target_transform=lambda y: 9 - y), "training")
    turned = Dataset.of(cls(str(tmp_path), target_transform=lambda y: 9 - y), plain)
    assert turned.train.y.tolist() == (9 - plain.targets).tolist()
    assert torch.equal(turned.train.x, Dataset.of(plain, plain).train.x)

    class Inverted(cls):
        @property
        def raw_folder(self):
            return str(tmp_path / "MNIST" / "raw")

        def __getitem__(self, i):
            return 255 - self.data[i], int(self.targets[i])

    assert torch.equal(Dataset.of(Inverted(str(tmp_path)), plain).train.x, 255 - plain.data.unsqueeze(1))


# -- items --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        Subset(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), range(N)),
        [(x, y) for x, y in zip(X, Y, strict=True)],
        Items(lambda i: [X[i].tolist(), int(Y[i])]),
        Items(lambda i: (torch.from_numpy(X[i]).requires_grad_(), torch.tensor(Y[i]))),
        (X.tolist(), Y.tolist()),
        (X[::-1][::-1], Y),
        (X.astype(">f4"), Y),
    ],
    ids=lambda data: type(data).__name__,
)
def test_what_has_pairs_by_number_is_read(data):
    read = Dataset.of(data, PAIR)
    assert torch.equal(read.train.x.float(), torch.from_numpy(X))
    assert read.train.y.tolist() == Y.tolist()


def failing(i):
    if i == 7:
        raise KeyError("row 7")
    return X[i], Y[i]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (
            Items(lambda i: {"image": X[i], "label": Y[i]}),
            "dataset-pairs",
        ),
        (Items(lambda i: (X[i], Y[i], i)), "dataset-pairs"),
        (Items(lambda i: X[i]), "dataset-pairs"),
        (Items(lambda i: (X[i], Y[i]) if i else None), "dataset-pairs"),
        (Items(failing), "dataset-raises"),
        (Items(lambda i: (X[i], Y[i]), N + 1), "dataset-raises"),
        (
            Items(lambda i: (np.zeros((8 + i % 3, 8), "uint8"), i)),
            "inputs-shapes",
        ),
        (Items(lambda i: (X[i][: 4 - (i == 5)], i)), "inputs-shapes"),
        (Items(lambda i: (X[i] if i else X[i].astype("uint8"), i)), "inputs-shapes"),
        (Items(lambda i: ("a text", i)), "inputs-type"),
        (Items(lambda i: ([1, [2, 3]], i)), "inputs-shapes"),
        (Items(lambda i: (X[i], i), 0), "dataset-empty"),
        (Stream(), "dataset-pairs"),
        (DataLoader(TensorDataset(torch.from_numpy(X))), "dataset-pairs"),
        ({"x": X, "y": Y}, "dataset-pairs"),
        (iter([(X[0], 0)]), "dataset-pairs"),
        (None, "dataset-pairs"),
        ((X, Y, Y), "dataset-pairs"),
        (X, "dataset-pairs"),
    ],
)
def test_what_has_no_pairs_is_told_in_one_line(data, code):
    refused("dataset", code, Dataset.of, data, PAIR)


def test_a_mistake_in_a_users_code_is_told_with_its_place():
    error = refused("dataset", "dataset-raises", Dataset.of, Items(failing), PAIR)
    assert re.search(r"training example 7 .*'row 7' at test_reading_data.py:\d+", str(error))


def test_a_class_may_say_how_many_classes_there_are():
    class Ten(Items):
        num_classes = 10

    pairs = Ten(lambda i: (X[i], i % 2))
    assert Dataset.of(pairs, PAIR).num_classes == 10
    assert Dataset.of(PAIR, PAIR, num_classes=5).num_classes == 5
    refused("dataset", "num-classes", Dataset.of, PAIR, pairs)
    pairs.num_classes = np.int64(4)
    assert Dataset.of(pairs, PAIR).num_classes == 4
    for count in ("ten", 0, -3, 2.5, True):
        pairs.num_classes = count
        refused("dataset", "num-classes", Dataset.of, pairs, PAIR)
        refused("dataset", "num-classes", Dataset.of, PAIR, PAIR, num_classes=count)


# -- inputs -------------------------------------------------------------------------------------------------------


def test_a_division_with_nan_is_refused_by_its_root(tmp_path, monkeypatch):
    from fedddp.data import Parts
    from fedddp.data.parts import write

    good = Dataset.of((X.copy(), Y), PAIR)
    good.train.x[4, 0] = float("nan")
    write(
        tmp_path / "p", good, Partition.dealt(np.arange(N), np.array([6, 6])), data="x", table={"name": "iid"}, seed=0
    )
    with pytest.raises(ValueError, match=r"^data.root='.*p': 1 of 12 training inputs hold NaN, first example 4"):
        Parts().divided(tmp_path / "p", 0, 1)


def test_a_division_says_how_many_tokens_there_are(tmp_path):
    """Each rank sees its own clients' tokens alone, and all build one model."""
    from fedddp.data import Parts
    from fedddp.data.parts import write

    x = torch.zeros(N, 3, dtype=torch.int64)
    x[6:] = 9  # the second client has the largest id
    dealt = Partition.dealt(np.arange(N), np.array([6, 6]))
    write(tmp_path / "p", Dataset.of((x, Y), (x[:2], Y[:2])), dealt, data="x", table={"name": "iid"}, seed=0)
    assert [Parts().divided(tmp_path / "p", rank, 2)[0].num_tokens for rank in (0, 1)] == [10, 10]
