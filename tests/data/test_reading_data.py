"""fedddp.data.reading, inputs, constructing: what a user's dataset may be, and the line for another one."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data import ClientData, Dataset, Examples, Normalizer, Partition, load
from fedddp.data.reading import _is_columns, damage
from fedddp.data.skew import Noise
from fedddp.registry.torchvision_operators import torchvision_class
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

N = 12
X = np.arange(N * 4, dtype=np.float32).reshape(N, 4)
Y = np.arange(N) % 3
PAIR = (X, Y)


def refused(key, code, attempt, *args, **more):
    """The UsageError by which ``attempt`` is refused, in one line."""
    with pytest.raises(UsageError) as error:
        attempt(*args, **more)
    assert (error.value.key, error.value.code) == (key, code)
    assert "\n" not in str(error.value)
    return error.value


class Items:
    """A map-style dataset: ``item(i)``."""

    def __init__(self, item, length=N):
        self.item, self.length = item, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.item(i)


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


def mnist(root: Path, train=(20, 20), test=(10, 10), name="MNIST"):
    """Files in MNIST's format with so many images and labels."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        size = np.array([images, 28, 28], dtype=">i4").tobytes()
        pixels = (np.arange(images * 784) % 251).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + size + pixels)
        numbers = (np.arange(labels) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([labels], dtype=">i4").tobytes() + numbers
        )
    return raw


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.uint16])
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
    def __init__(self, root, split="train", download=False):
        pass


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
        ("Splits", {}, "dataset-arguments"),
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
    assert ("at test_reading_data.py:" in str(error)) == (code == "dataset-raises")
    assert (str(tmp_path) in str(error)) == (code == "dataset-missing")


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


def own_mnist(root, train, download):
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


def test_a_division_with_nan_is_refused_by_its_root(tmp_path, monkeypatch):
    from fedddp.data import Parts
    from fedddp.data.parts import write

    good = Dataset.of(PAIR, PAIR)
    good.train.x[4, 0] = float("nan")
    write(
        tmp_path / "p", good, Partition.dealt(np.arange(N), np.array([6, 6])), data="x", table={"name": "iid"}, seed=0
    )
    with pytest.raises(ValueError, match=r"^data.root='.*p': 1 of 12 training inputs hold NaN, first example 4"):
        Parts().divided(tmp_path / "p", 0, 1)
