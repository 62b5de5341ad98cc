"""fedddp.data.datasets: the embedded digits, and datasets of the user's."""

import hashlib
import os
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddp.data import DATASETS, Dataset, Examples, load
from fedddp.data.datasets import from_class
from tools.make_mnist_mini import digest, draw, write

EMBEDDED = resources.files("fedddp.data")


def embedded():
    with EMBEDDED.joinpath("mnist_mini.npz").open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def documented(what):
    text = EMBEDDED.joinpath("mnist_mini.md").read_text()
    return re.search(rf"sha256 of the {what}.*?`([0-9a-f]{{64}})`", text, re.DOTALL)[1]


def test_mnist_mini_has_a_thousand_and_two_hundred_digits_a_class(digits):
    for examples, a_class in ((digits.train, 1000), (digits.test, 200)):
        assert examples.x.shape == (10 * a_class, 1, 28, 28)
        assert examples.x.dtype == torch.uint8
        assert examples.y.dtype == torch.int64
        assert examples.y.bincount().tolist() == [a_class] * 10
    assert digits.num_classes == 10


def test_mnist_mini_looks_like_mnist(digits):
    """Its pixels have the mean and deviation published for MNIST, and the labels are in no order."""
    pixels = digits.train.x.double() / 255
    assert pixels.mean().item() == pytest.approx(digits.mean[0], abs=0.002)
    assert pixels.std().item() == pytest.approx(digits.std[0], abs=0.002)
    assert digits.train.y[:1000].bincount(minlength=10).min() > 50


def test_mnist_mini_is_the_file_that_its_description_names():
    content = EMBEDDED.joinpath("mnist_mini.npz").read_bytes()
    assert len(content) < 2_500_000
    assert hashlib.sha256(content).hexdigest() == documented("file")
    assert digest(embedded()) == documented("arrays")


def test_no_test_digit_is_a_training_digit(digits):
    train, test = ({image.tobytes() for image in part.x.numpy()} for part in (digits.train, digits.test))
    assert not train & test


def test_writing_the_arrays_again_gives_arrays_that_read_the_same(tmp_path):
    few = {name: array[:20] for name, array in embedded().items()}
    for name in ("a.npz", "b.npz"):
        write(few, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as arrays:
        assert digest(dict(arrays)) == digest(few)
    assert digest({**few, "test_y": few["test_y"] + 1}) != digest(few)


@pytest.mark.skipif("FEDDDP_TEST_DATA" not in os.environ, reason="FEDDDP_TEST_DATA names no folder with MNIST")
def test_the_embedded_digits_are_drawn_from_the_real_mnist():
    assert digest(draw(Path(os.environ["FEDDDP_TEST_DATA"]))) == documented("arrays")


@pytest.mark.parametrize("shape", [[36], [5, 7], [2, 3, 4, 5]])
def test_synthetic_inputs_of_any_shape_are_normalised_alike(shape):
    """Only pictures [C, H, W] have a mean for each channel."""
    dataset = DATASETS["synthetic"](Path("unused"), False, num_train=6, num_test=2, shape=shape)
    expected = (dataset.train.x.double() / 255 - 0.5) / 0.3
    assert torch.allclose(dataset.normalizer(torch.float64)(dataset.train.x), expected)


def test_synthetic_data_is_repeatable_and_of_the_shape_asked_for():
    make = DATASETS["synthetic"]
    data = make(Path("."), False, num_train=30, num_test=12, num_classes=3, shape=(3, 8, 6))
    assert (data.train.x.shape, data.test.x.shape, data.num_classes) == ((30, 3, 8, 6), (12, 3, 8, 6), 3)
    assert data.train.x.dtype == torch.uint8
    assert len(data.mean) == len(data.std) == 3
    again, other = (
        make(Path("."), False, num_train=30, num_test=12, num_classes=3, shape=(3, 8, 6), seed=s) for s in (0, 1)
    )
    assert torch.equal(again.train.x, data.train.x)
    assert not torch.equal(other.train.x, data.train.x)


class Colours:
    """As torchvision's CIFAR10: ``data`` [n, H, W, 3] numpy, ``targets`` a list."""

    def __init__(self, root, train, download, size=4):
        self.root, n = root, 6 if train else 3
        self.data = np.arange(n * size * size * 3).reshape(n, size, size, 3).astype(np.uint8)
        self.targets = [i % 3 for i in range(n)]


class Pairs:
    """As any map-style dataset of pictures: yields (image [H, W] or [H, W, 3], label)."""

    def __init__(self, root, train, download, colour=False):
        self.images = Colours(root, train, download).data if colour else Colours(root, train, download).data[..., 0]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i % 3


class Vectors(Pairs):
    """Floating-point inputs, as tensors."""

    def __getitem__(self, i):
        return torch.full((4,), float(i)), torch.tensor(i % 3)


def test_a_class_with_data_and_targets_is_read_channels_first(tmp_path):
    data = from_class(Colours, tmp_path, False, size=5)
    assert data.train.x.shape == (6, 3, 5, 5)
    assert data.train.x[1, 2, 0, 1] == 1 * 75 + 0 * 15 + 1 * 3 + 2
    assert data.test.y.tolist() == [0, 1, 2]
    assert data.num_classes == 3
    pixels = data.train.x.double().div(255).transpose(0, 1).flatten(1)
    assert data.mean == pytest.approx(pixels.mean(dim=1).tolist())
    assert data.std == pytest.approx(pixels.std(dim=1).tolist())


def test_a_class_that_yields_pairs_is_read_once(tmp_path):
    grey, colour = from_class(Pairs, tmp_path, False), from_class(Pairs, tmp_path, False, colour=True)
    assert grey.train.x.shape == (6, 1, 4, 4)
    assert grey.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(colour.train.x, from_class(Colours, tmp_path, False).train.x)


def test_floating_point_inputs_are_taken_as_they_are(tmp_path):
    data = from_class(Vectors, tmp_path, False)
    assert data.train.x.tolist() == [[float(i)] * 4 for i in range(6)]
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    assert data.train.y.dtype == torch.int64


class Bytes(Pairs):
    """Rows of bytes, and labels from 1 of which only the test set has the last; it says how many classes there are."""

    num_classes = 5

    def __init__(self, root, train, download):
        self.images = torch.arange(24 if train else 8, dtype=torch.uint8).view(-1, 4)
        self.top = 3 if train else 4

    def __getitem__(self, i):
        return self.images[i], self.top - i % 3


def test_bytes_without_channels_are_normalised_as_a_whole(tmp_path):
    data = from_class(Bytes, tmp_path, False)
    assert data.train.x.shape == (6, 4)
    values = torch.arange(24, dtype=torch.float64) / 255
    assert (data.mean, data.std) == (pytest.approx((values.mean().item(),)), pytest.approx((values.std().item(),)))
    normalized = data.normalizer(torch.float64)(data.train.x)
    assert torch.allclose(normalized.flatten(), (values - values.mean()) / values.std())


def test_classes_are_counted_in_both_parts(tmp_path):
    data = from_class(Bytes, tmp_path, False)
    assert (data.num_classes, data.train.y.tolist(), data.test.y.tolist()) == (5, [3, 2, 1, 3, 2, 1], [4, 3])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "emnist", "cifar10"])
def test_a_missing_root_names_the_key_and_the_remedy(name, tmp_path):
    with pytest.raises(ValueError, match="does not exist") as error:
        load(name, tmp_path / "nowhere", False, {})
    assert str(error.value).startswith(f"data.name={name!r}: data.root='{tmp_path / 'nowhere'}' ")
    assert str(error.value).endswith("point it at the data, or set data.download=true")
    assert not (tmp_path / "nowhere").exists()


def absent(root, train, download):
    """A dataset whose files are not there and cannot be had, in torchvision's words."""
    raise RuntimeError("Dataset not found.\nYou can use download=True" if not download else "no network")


def test_data_that_is_not_there_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"not found in data.root=.* \(Dataset not found\); .*data.download=true$"):
        from_class(absent, tmp_path, False)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no network\); .*data.name=mnist-mini$"):
        from_class(absent, tmp_path, True)


def test_labels_and_inputs_must_be_as_many():
    good, bad = (Examples(torch.zeros(3, 1), torch.zeros(n, dtype=torch.long)) for n in (3, 2))
    with pytest.raises(ValueError, match="the test set has 3 inputs and 2 labels"):
        Dataset(good, bad, 2, (0.0,), (1.0,))
