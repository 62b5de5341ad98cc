"""Hostile values at random, from a fixed seed: every key of a configuration, labels, inputs and models.

Whatever comes, there is one line that names the key, or the value is taken for what it is.
"""

import enum
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import Config, UsageError, build, flatten, parse, to_dict, to_toml
from fedddp.data import Dataset
from fedddp.data.labels import numbered
from fedddp.data.reading import read
from fedddp.registry.choice import keys_of
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

INF = float("inf")
NUMBERS = [float("nan"), INF, -INF, -1, 0, 1, 3.0, 7, 0.5, 1e30, -1e30, 1e-45, 2**31, 2**63, 2**63 - 1, -0.0, 10**400]
WORDS = [
    "",
    " ",
    "\0",
    "None",
    "null",
    "off",
    "[]",
    "{}",
    "x" * 5000,
    "é\u202e",
    "\ud800",
    "a\nb",
    "%s",
    "1",
    "1e3",
    ":",
]
OTHERS = [True, False, [], {}, [1], [[]], {"name": "x"}, {"name": 1}, {"a": {"b": {}}}, "torch.nn:Linear", "a:b", None]
VALUES = [*NUMBERS, *WORDS, *OTHERS, np.True_, np.int64(3), b"\xff", object(), 1j, Path("x"), Decimal(1), {1, 2}]
KEYS = sorted({*keys_of(Config)})


def table(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_value_is_taken_as_it_is_or_refused_in_one_line_with_its_key(seed):
    draw = random.Random(seed)
    for _ in range(150):
        (key, condition), value = draw.choice(KEYS), draw.choice(VALUES)
        layers = [table(*condition.split("=")), table(key, value)] if condition else [table(key, value)]
        told = f"{key}={value!r:.40} ({condition})"
        try:
            config = build(*layers)
            to_toml(config)
            made = flatten(to_dict(config)).get(key)
            if isinstance(value, bool | int | float):
                assert isinstance(made, str) or (made == value and isinstance(made, bool) >= isinstance(value, bool)), (
                    told
                )
            resolve(config, Place())
        except UsageError as refused:
            line = str(refused)
            assert len(line) < 500, told
            assert key.split(".")[0] in line or key in line, f"{told}: {line}"
            assert line.startswith(key.removesuffix(".name")) or "." in line.split(":")[0] or condition, (
                f"{told}: {line}"
            )


@pytest.mark.parametrize("value", [True, False, np.True_, 2**63 - 1])
@pytest.mark.parametrize("key", ["client.optimizer.lr", "run.timeout", "client.clip_norm"])
def test_what_is_no_number_or_no_float_is_not_made_one(key, value):
    with pytest.raises(UsageError, match=f"^{key}="):
        build(table(key, value))


@pytest.mark.parametrize(
    ("word", "kept"),
    [("1e3", "1e3"), ("1_0", "1_0"), ("0x10", "0x10"), ("1.10", "1.10"), ("7", "7"), ("1e400", "1e400")],
)
def test_a_name_that_looks_like_a_number_stays_as_it_was_written(word, kept):
    config = build(*parse([f"--run.name={word}", f"--run.dir={word}"]).layers)
    assert (config.run.name, config.run.dir) == (kept, kept)


def test_numbers_are_numbers_however_they_are_written():
    config = build(
        *parse(["--client.optimizer.lr=1e-2", "--run.seed=0x10", "--data.args.n=1_0", "--run.rounds=3.0"]).layers
    )
    assert (config.client.optimizer.lr, config.run.seed, config.data.args, config.run.rounds) == (
        0.01,
        16,
        {"n": 10},
        3,
    )
    assert build(config.model_dump() and to_dict(config)).data.args == {"n": 10}


@pytest.mark.parametrize("value", [np.arange(3), None, object(), {1, 2}, b"x", Path("x"), [None], {"a": None}])
def test_arguments_that_no_file_can_hold_are_refused(value):
    with pytest.raises(UsageError, match=r"^data\.args\.n"):
        build({"data": {"args": {"n": value}}})


def test_a_path_object_is_a_path():
    assert build({"data": {"root": Path("a/b")}}).data.root == "a/b"


class Broken:
    def __len__(self):
        raise OSError("no")

    def __iter__(self):
        raise OSError("no")

    def __array__(self, *args, **kwargs):
        raise OSError("no")


LABELS = {
    "masked": np.ma.array([0, 1, 2], mask=[0, 0, 1]),
    "a set": {0, 1},
    "a table": {0: "a", 1: "b"},
    "a generator": (i for i in (0, 1)),
    "sparse": torch.eye(2).to_sparse(),
    "without data": torch.empty(2, device="meta"),
    "bytes of no encoding": [b"\xff", b"a"],
    "an array of such": np.array([b"\xff", b"a"]),
    "an essay": ["x" * 10**6, "y"],
    "ends in NUL": ["a\0", "a"],
    "broken": Broken(),
    "dates": np.array(["2020", "2021"], "datetime64[D]"),
    "beyond 64 bits": [0, 2**70],
    "an enumeration": list(enum.Enum("E", "A B")),
    "a missing name": np.array(["a", None], dtype=np.dtypes.StringDType(na_object=None)),
    "decimals": [Decimal(0), Decimal(1)],
    "two columns": np.array([[0.5, 0.5], [0, 1]]),
    "a number": np.array(3),
    "mixed": [True, "a"],
    "NaN among names": ["a", float("nan")],
}


def check_line(error):
    assert type(error) in (ValueError, UsageError)  # not one of Python's own, such as UnicodeDecodeError
    assert "\n" not in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_that_are_none_are_one_line(labels):
    with pytest.raises(ValueError, match="training labels") as refused:
        numbered(labels, [0, 1])
    check_line(refused.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "labels",
    [np.array([0, 1], np.float16), np.array(["é".encode(), b"z"]), np.array(["a", "b"], dtype=np.dtypes.StringDType())],
)
def test_labels_of_rare_types_are_numbered_without_a_warning(labels):
    assert sorted(numbered(labels, labels).train.tolist()) == [0, 1]


X, Y = torch.randn(12, 4), torch.arange(12) % 3
INPUTS = {
    "one number": torch.tensor(1.0),
    "without data": torch.empty(12, 4, device="meta"),
    "nested": torch.nested.nested_tensor([torch.zeros(2)] * 12, layout=torch.jagged),
    "masked": np.ma.array(np.ones((12, 4)), mask=np.eye(12, 4)),
    "sparse": X.to_sparse(),
    "no features": X[:, :0],
    "objects": np.ones((12, 4), dtype=object),
    "broken": Broken(),
    "text": "abc",
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_inputs_that_are_none_are_one_line(x):
    with pytest.raises(ValueError, match=r"^dataset: ") as refused:
        Dataset.of((x, Y), (X, Y))
    check_line(refused.value)


class Items:
    def __init__(self, item=lambda i: (X[i], int(Y[i])), size=lambda: 12, **attributes):
        self.item, self.size = item, size
        vars(self).update(attributes)

    def __len__(self):
        return self.size()

    def __getitem__(self, i):
        return self.item(i)


DATASETS = {
    "no length": Items(size=lambda: 1.5),
    "a failing length": Items(size=lambda: 1 // 0),
    "a length too large": Items(size=lambda: 10**12),
    "sparse inputs": Items(lambda i: (X[i].to_sparse(), 0)),
    "labels that are tables": Items(lambda i: (X[i], {"a": 1})),
    "a billion classes": Items(num_classes=10**9),
    "no end": Items(lambda i: DATASETS["no end"][i]),
}


@pytest.mark.parametrize("data", DATASETS.values(), ids=DATASETS)
def test_datasets_that_are_none_are_one_line(data):
    with pytest.raises(ValueError, match=r"^dataset: ") as refused:
        Dataset.of(data, data)
    check_line(refused.value)


def test_a_slow_dataset_is_not_read_a_thousand_times(monkeypatch):
    monkeypatch.setattr("fedddp.data.reading.PATIENCE", 0.0)
    reads = []
    read(Items(lambda i: reads.append(i) or (X[i], int(Y[i]))), "training")
    assert len(reads) == 24  # once, and once again


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.mul_(2))


class Growing(InPlace):
    def forward(self, x):
        if not hasattr(self, "more"):
            self.more = nn.Linear(3, 3)
        return self.more(super().forward(x))


class NotANumber(InPlace):
    def forward(self, x):
        return super().forward(x) / 0 * 0


class NoMode(InPlace):
    def train(self, mode=True):
        raise RuntimeError("no mode")


@pytest.mark.parametrize("model", [Growing, NotANumber, NoMode])
def test_models_that_cannot_be_trained_are_one_line(model, tmp_path):
    with pytest.raises(UsageError, match=r"^model\.name="):
        prepared(model, tmp_path)


def test_a_model_that_changes_its_input_does_not_change_the_data(tmp_path):
    made = prepared(InPlace, tmp_path)
    before, normalize = made.test.x.clone(), made.data.normalize
    made.task.model(0)(normalize(made.test.x))
    assert torch.equal(made.test.x, before)


def prepared(model, folder):
    from fedddp.api import configured

    config = configured(model=model, dir=str(folder), data={"partition": {"num_clients": 2}})
    config, dataset = resolve(config, Place()), Dataset.of((X.clone(), Y), (X.clone(), Y))
    return prepare(config, Place(), dataset, config.data.partition.owners(dataset.train, 0))
