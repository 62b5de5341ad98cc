"""fedddp.data.inputs: which inputs a dataset may have, and the line for others; dataset classes and their files."""

import re

import numpy as np
import pytest
import torch

from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data import ClientData, Dataset, Examples, Normalizer, Partition, load
from fedddp.data.reading import damage
from fedddp.data.skew import Noise
from fedddp.registry.torchvision_operators import torchvision_class
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.datasets import PAIR, Items, N, X, Y, mnist, refused


def with_values(values, at, dtype="float32"):
    x = X.astype(dtype)
    for row, value in zip(at, values, strict=True):
        x[row, 1] = value
    return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "at", "found"),
    [
        ([np.nan] * 3, (7, 9, 11), "3 of 12 training inputs hold NaN, first example 7;"),
        ([np.inf, -np.inf], (0, 4), "2 of 12 training inputs hold infinite values, first example 0;"),
        ([np.inf, np.nan], (5, 3), "2 of 12 training inputs hold NaN or infinite values, first example 3;"),
    ],
)
def test_inputs_that_are_not_finite_are_counted(values, at, found, dtype):
    x = torch.from_numpy(with_values(values, at)).to(dtype)
    assert found in str(refused("dataset", "inputs-not-finite", Dataset.of, (x, Y), PAIR))
    other = str(refused("dataset", "inputs-not-finite", Dataset.of, PAIR, (x, Y)))
    assert found.replace("training", "test") in other


def test_large_inputs_are_finite():
    huge = np.full((N, 2), 3e38, dtype="float32")
    assert len(Dataset.of((huge, Y), (huge, Y)).train) == N
    twice = np.full((N, 2), 1.7e308)
    assert len(Dataset.of((twice, Y), (twice, Y)).train) == N


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (X.astype(complex), "inputs-type"),
        (torch.from_numpy(X).to(torch.complex64), "inputs-type"),
        (torch.from_numpy(X).to_sparse(), "inputs-type"),
        (X.astype(object), "inputs-type"),
        (np.array(["a"] * N), "inputs-type"),
        (np.array([{"a": 1}] * N), "inputs-type"),
        (X.astype("datetime64[D]"), "inputs-type"),
        (X.astype(np.longdouble), "inputs-type"),
        ([[1.0, 2.0], [1.0]], "inputs-shapes"),
        (X[:, :0], "inputs-empty"),
        (X[:5], "dataset-lengths"),
        (X.astype(np.uint8), "inputs-sets-differ"),
        (X.astype(np.int64), "inputs-sets-differ"),
        (X > 3, "inputs-sets-differ"),
    ],
    ids=repr,
)
def test_inputs_that_no_model_takes_are_refused_in_one_line(x, code):
    refused("dataset", code, Dataset.of, (x, Y), PAIR)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool])
def test_whole_numbers_and_bools_stay_what_they_are_up_to_the_model(dtype):
    x = torch.from_numpy(X).to(dtype)
    data = Dataset.of((x, Y), (x, Y))
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    owners = Partition.dealt(np.arange(N), np.array([5, 7]))
    for placement in ("home", "shared"):
        held = ClientData(data.train, owners, data.normalizer(torch.float32), placement=placement)
        gathered, _ = held.gather([1], torch.arange(7).view(1, 1, 7))
        assert gathered.dtype == dtype
        assert torch.equal(gathered.view(torch.uint8), x[5:].view(1, 1, 7, 4).view(torch.uint8))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e4m3fn", "complex64"])
def test_types_that_torch_does_not_compare_are_refused(dtype):
    x = torch.ones(len(Y), 4).to(getattr(torch, dtype))
    assert f"training inputs are {dtype}; " in str(refused("dataset", "inputs-type", Dataset.of, (x, Y), (x, Y)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_noise_on_whole_numbers_is_refused(dtype):
    examples = Examples(torch.from_numpy(X).to(dtype), torch.from_numpy(Y))
    owners = Partition.dealt(np.arange(N), np.array([N]))
    normalize = Normalizer((0.0,), (1.0,), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=rf"^data.skew.name=noise: .*inputs are {dtype}"):
        ClientData(examples, owners, normalize, skew=Noise())


def test_volumes_and_pictures_with_four_channels_last():
    volumes = torch.arange(N * 2 * 27, dtype=torch.int64).remainder(251).to(torch.uint8).view(N, 2, 3, 3, 3)
    data = Dataset.of((volumes, Y), (volumes, Y))
    pixels = volumes.double() / 255
    assert (data.mean, data.std) == ((pytest.approx(pixels.mean().item()),), (pytest.approx(pixels.std().item()),))
    normalized = data.normalizer(torch.float64)(volumes)
    assert torch.allclose(normalized, (pixels - pixels.mean()) / pixels.std())
    rgba = torch.arange(N * 25 * 4).remainder(256).to(torch.uint8).view(N, 5, 5, 4)
    assert Dataset.of((rgba, Y), (rgba, Y)).train.x.shape == (N, 4, 5, 5)


class Large:
    def __init__(self, root, train, download, value):
        self.data, self.targets = np.where(np.arange(24).reshape(12, 2) == 3, float(value), 1.0), Y


@pytest.mark.parametrize(
    ("value", "precision", "fits"),
    [(1e39, "float32", False), (-1e200, "float32", False), (1e39, "float64", True), (3e38, "float32", True)],
)
def test_float64_inputs_are_cast_only_if_they_stay_finite(value, precision, fits, tmp_path):
    table = {
        "data": {"name": f"{__name__}:Large", "args": {"value": str(value)}},
        "run": {"device": "cpu", "dir": str(tmp_path)},
        "client": {"precision": precision},
        "model": {"name": "logistic"},
    }
    config = resolve(build(table), Place())
    if fits:
        assert prepare(config, Place()).spec.dtype == getattr(torch, precision)
    else:
        with pytest.raises(
            UsageError, match=rf"^dataset: inputs reach {abs(value):.3g}.*client.precision=float64$".replace("+", r"\+")
        ):
            prepare(config, Place())


def test_a_dataset_of_finished_examples_has_its_labels_checked():
    x = torch.from_numpy(X)
    for y, found in (
        (torch.zeros(N), "torch.float32"),
        (torch.full((N,), 3), "3 to 3"),
        (torch.full((N,), -1), "-1 to -1"),
    ):
        error = refused("", "labels-type", Dataset, Examples(x, y), Examples(x, y), 3, (0.0,), (1.0,))
        assert found in str(error)


# -- constructing -------------------------------------------------------------------------------------------------


class Splits:
    """As torchvision's SVHN: ``split`` and no ``train``."""

    def __init__(self, root, split="train", download=False):
        self.data, self.targets = torch.full((6, 2), {"train": 1.0, "test": 2.0, "extra": 3.0}[split]), [0, 1] * 3


class Undownloadable:
    def __init__(self, root, train):
        pass


class Broken:
    def __init__(self, root, train, download, how="shape"):
        if how == "shape":
            torch.zeros(3).view(2, 2)
        if how == "value":
            raise ValueError("no such fold\nand more")
        if how == "late" and not train:
            raise ZeroDivisionError
        if how == "missing":
            raise FileNotFoundError("x.csv")
        if how == "words":
            raise RuntimeError("x.csv not found")


@pytest.mark.parametrize(
    ("name", "args", "code"),
    [
        ("Splits", {"split": "extra"}, "dataset-arguments"),
        ("Splits", {"split": ["train", "val"]}, "dataset-raises"),
        ("Undownloadable", {}, "dataset-arguments"),
        ("Broken", {"hwo": 1}, "dataset-arguments"),
        ("N", {}, "dataset-arguments"),
        ("Broken", {"how": "shape"}, "dataset-raises"),
        ("Broken", {"how": "value"}, "dataset-raises"),
        ("Broken", {"how": "late"}, "dataset-raises"),
        ("Broken", {"how": "missing"}, "dataset-missing"),
        ("Broken", {"how": "words"}, "dataset-missing"),
        ("Broken", {"how": "fine"}, "dataset-pairs"),
    ],
)
def test_a_class_that_cannot_be_constructed_is_told_by_key_and_reason(name, args, code, tmp_path):
    error = refused("data.name", code, load, f"{__name__}:{name}", tmp_path, False, args)
    assert f"{__name__}:{name}" in str(error)
    assert ("at test_inputs.py:" in str(error)) == (code == "dataset-raises")
    assert (str(tmp_path) in str(error)) == (code == "dataset-missing")


def test_a_class_with_split_gets_train_and_test_or_the_names_that_are_asked_for(tmp_path):
    for args, values in (({}, (1, 2)), ({"split": ["extra", "test"]}, (3, 2))):
        data = load(f"{__name__}:Splits", tmp_path, False, args)
        assert (data.train.x.unique().tolist(), data.test.x.unique().tolist()) == ([values[0]], [values[1]])


def test_torchvisions_own_classes_with_split_are_read(tmp_path, monkeypatch):
    svhn = torchvision_class("SVHN")
    savemat = pytest.importorskip("scipy.io").savemat
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for part, n in (("train", 20), ("test", 12)):
        digits = np.arange(1, n + 1)[:, None] % 10 + 1  # ten is a zero
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels[..., :n], "y": digits})
    monkeypatch.setattr(svhn, "_check_integrity", lambda self: True)  # of the sums of the real files
    data = load("torchvision.datasets:SVHN", tmp_path, False, {})
    assert np.array_equal(data.train.x, pixels.transpose(3, 2, 0, 1))
    assert data.test.y.tolist() == [(i + 1) % 10 for i in range(1, 13)]


def test_only_the_constructor_can_miss_its_files(tmp_path):
    for download in (False, True):
        with pytest.raises(ValueError, match=r"training example 3 cannot be read \(FileNotFoundError: 3.png at"):
            load(f"{__name__}:Lost", tmp_path, download, {})


class Lost(Items):
    def __init__(self, root, train, download):
        super().__init__(self.open)

    def open(self, i):
        if i == 3:
            raise FileNotFoundError("3.png")
        return X[i], Y[i]


def test_a_name_that_is_nearly_one_is_suggested(tmp_path):
    with pytest.raises(ValueError, match=r"^data.name='mnist_mini': .*did you mean 'mnist-mini'\?$"):
        load("mnist_mini", tmp_path, False, {})


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "truncated": (IMAGES, lambda b: b[:5000], r"has 5000 bytes, its header says 15696"),
    "longer": (IMAGES, lambda b: b + b"\0", "has 15697 bytes, its header says 15696"),
    "empty": (LABELS, lambda b: b"", "has 0 bytes"),
    "three bytes": (LABELS, lambda b: b[:3], "has 3 bytes"),
    "header only": (LABELS, lambda b: b[:6], "has 6 bytes, its header says"),
    "zeros": (LABELS, lambda b: bytes(100), "begins with the bytes 00000000"),
    "page": (IMAGES, lambda b: b"<!DOCTYPE html>" + b, "begins with the bytes 3c21444f"),
    "swapped": ("t10k-labels-idx1-ubyte", lambda b: b[:2] + b"\x0d" + b[3:], "has 18 bytes, its header says 48"),
}


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_of_mnist_is_named(how, download, tmp_path):
    name, change, found = DAMAGE[how]
    path = mnist(tmp_path) / name
    path.write_bytes(change(path.read_bytes()))
    for data in ("mnist", f"{__name__}:own_mnist"):
        with pytest.raises(
            ValueError, match=f"{re.escape(str(path))} is damaged.*{found}.*remove it, or copy it"
        ) as error:
            load(data, tmp_path, download, {})
        assert str(error.value).startswith(f"data.name='{data}': ")


def own_mnist(root, train, download) -> torch.utils.data.Dataset:
    return torchvision_class("MNIST")(root, train=train, download=download)


own_mnist.__name__ = "MNIST"


def test_labels_that_do_not_belong_to_the_images_are_told(tmp_path):
    raw = mnist(tmp_path / "a", train=(20, 10))
    with pytest.raises(ValueError, match=r"^data.name='mnist': the training set has 20 inputs and 10 labels"):
        load("mnist", tmp_path / "a", False, {})
    raw = mnist(tmp_path / "b")
    content = bytearray((raw / LABELS).read_bytes())
    content[-1] = 200
    (raw / LABELS).write_bytes(content)
    with pytest.raises(ValueError, match=r"^data.name='mnist': label 200 of training example 19 is outside 0 to 9"):
        load("mnist", tmp_path / "b", False, {})


def test_whole_files_are_not_damaged_and_few_digits_are_ten_classes(tmp_path):
    mnist(tmp_path, train=(3, 3), test=(2, 2))
    data = load("mnist", tmp_path, False, {})
    assert (data.num_classes, data.train.y.tolist()) == (10, [0, 1, 2])
    assert damage(torchvision_class("MNIST"), tmp_path) is None


def test_a_damaged_batch_of_cifar_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_2").write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"data_batch_2 is damaged \(its MD5 sum"):
        load("cifar10", tmp_path, False, {})
