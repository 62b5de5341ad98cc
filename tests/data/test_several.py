"""fedddp.data.several: inputs of several tensors, from Python and by import path, through a whole run."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import fedddp
from fedddp.data import Dataset
from fedddp.data.several import Layout, packed
from fedddp.train import main


class Both(nn.Module):
    """Tokens by an embedding, numbers as they are, side by side into a linear layer."""

    def __init__(self, vocabulary=6):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 4)
        self.head = nn.Linear(4 + 3, 2)

    def forward(self, tokens, numbers):
        assert tokens.dtype == torch.int64
        return self.head(torch.cat([self.table(tokens).mean(dim=1), numbers], dim=1))


class Pair(Both):
    """The same of a tuple."""


def columns(n=90, seed=0):
    """The class follows from a token and a number, neither of which is enough."""
    torch.manual_seed(seed)
    tokens, numbers = torch.randint(6, (n, 5)), torch.randn(n, 3)
    y = ((tokens[:, 0] > 2).float() + (numbers[:, 0] > 0) > 1).long()
    tokens[:, 1:] = tokens[:, :1]
    return {"tokens": tokens, "numbers": numbers}, y


class Items:
    """As a user's class has it: a dict an example. Called as torchvision's classes are."""

    def __init__(self, root="", train=True, download=False):
        self.x, self.y = columns(60 if train else 30, seed=int(train))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {name: part[i] for name, part in self.x.items()}, int(self.y[i])


def run(tmp_path, dataset, model, **sections):
    base = {
        "data": {"partition": {"num_clients": 4}},
        "run": {"rounds": 8, "dir": str(tmp_path), "name": "run"},
        "client": {"batch_size": 5, "local_epochs": 3, "optimizer": {"lr": 0.5}},
        "telemetry": {"progress": "off"},
    }
    return fedddp.run({**base, **sections}, dataset=dataset, model=model)


def test_what_is_packed_is_unpacked():
    x = {
        "tokens": torch.tensor([[1, 2**24], [0, 5]]),
        "one": torch.tensor([0.1, 7.0]),
        "flag": torch.tensor([True, False]),
        "image": torch.tensor([[[0, 255]], [[51, 102]]], dtype=torch.uint8),
    }
    rows, layout = packed(x, "inputs")
    assert (rows.shape, rows.dtype, len(layout)) == ((2, 6), torch.float32, 6)
    again = dict(zip(layout.names, layout.unpack(rows), strict=True))
    for name in ("tokens", "one", "flag"):
        assert torch.equal(again[name], x[name])
        assert again[name].dtype == x[name].dtype
    torch.testing.assert_close(again["image"], x["image"] / 255)
    assert Layout.of_form(json.loads(json.dumps(layout.form()))) == layout
    assert packed({"a": np.array([0.1])}, "inputs")[0].dtype == torch.float64  # nothing is rounded


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_dict_of_inputs_trains_batched_and_one_by_one_alike(tmp_path, algorithm):
    x, y = columns()
    data = Dataset.of(({k: v[:60] for k, v in x.items()}, y[:60]), ({k: v[60:] for k, v in x.items()}, y[60:]))
    ends = {}
    for how in ("vectorized", "sequential"):
        result = run(
            tmp_path / how, data, Both, algorithm={"name": algorithm},
            client={"batch_size": 5, "local_epochs": 3, "optimizer": {"lr": 0.5}, "precision": "float64",
                    "execution": {"name": how}},
        )  # fmt: skip
        assert result.summary["final_test_accuracy"] >= 0.9
        ends[how] = torch.cat([p.flatten() for p in result.module.parameters()])
    torch.testing.assert_close(ends["vectorized"], ends["sequential"], rtol=1e-9, atol=1e-11)


def test_a_tuple_of_inputs(tmp_path):
    x, y = columns()
    parts = tuple(x.values())
    data = Dataset.of((tuple(p[:60] for p in parts), y[:60]), (tuple(p[60:] for p in parts), y[60:]))
    assert run(tmp_path, data, Pair).summary["final_test_accuracy"] >= 0.9


@pytest.mark.parametrize("level", ["example", "client"])
def test_private_training(tmp_path, level):
    privacy = {"level": level, "noise_multiplier": 0.5, "randomness": "seeded", "delta": 0.001}
    result = run(tmp_path, Dataset.of(Items(), Items(train=False)), Both, privacy=privacy)
    assert result.history[-1]["epsilon"] > 0


def test_the_saved_model_takes_rows_and_arguments(tmp_path):
    dataset = Dataset.of(Items(), Items(train=False))
    result = run(tmp_path, dataset, Both)
    model = fedddp.load(result.folder, model=Both)
    rows = fedddp.normalizer(result.folder)(dataset.test.x)
    x = Items(train=False).x
    torch.testing.assert_close(model(rows), model(**x))


def test_by_import_path_with_an_interruption(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data.name=tests.data.test_several:Items", "--model.name=tests.data.test_several:Both"]
    words += ["--data.partition.num_clients=3", "--client.optimizer.lr=0.5", "--client.batch_size=5", "--run.name=r"]
    assert main([*words, "--run.rounds=2"]) == 0
    assert main([*words, "--run.rounds=4", "--run.resume=auto"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert main([*words, "--model.name=logistic", "--run.name=other"]) == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert "model.name='logistic': does not run on inputs" in message


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ({"a": torch.zeros(3, 2), "b": torch.zeros(2)}, "several tensors of unequal length (a [3, 2], b [2])"),
        ({}, "several tensors of unequal length (none)"),
        ({"a": torch.tensor([1, 2**24 + 1, 0])}, "number the values from 0"),
        ({"a": ["x", "y", "z"]}, "training inputs 'a' are text"),
        ({"a": torch.tensor([1.0, float("nan"), 0])}, "1 of 3 training inputs hold NaN, first example 1"),
    ],
)
def test_what_cannot_be_packed_is_one_line(x, told):
    with pytest.raises(ValueError, match="dataset") as error:
        Dataset.of((x, [0, 1, 1]), (x, [0, 1, 1]))
    assert told in str(error.value)


def test_examples_of_other_forms_are_refused():
    class Uneven(Items):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return (x if i < 7 else {**x, "tokens": x["tokens"][:3]}), y

    with pytest.raises(
        ValueError, match=r"example 0 is tokens int64 \[5\], numbers float32 \[3\], example 7 is tokens"
    ):
        Dataset.of(Uneven(), Items(train=False))
    x, y = columns(9)
    with pytest.raises(ValueError, match=r"training inputs are tokens .* test inputs one tensor"):
        Dataset.of((x, y), (x["numbers"], y))
