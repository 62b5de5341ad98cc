"""A run goes on with the model that its checkpoint is of: names, shapes and order of its tensors are compared."""

import json

import pytest
import torch
from torch import nn

import fedddp
from fedddp import UsageError
from fedddp.checkpoints.saved import Saved, newest, sha256
from fedddp.flat import FlatSpec

LAYERS = {"a": (784, 4), "b": (784, 4), "head": (4, 10)}


def net(layers, frozen=()):
    """A class of the same name each time, with these layers in this order."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, (inputs, outputs) in layers.items():
                self.add_module(name, nn.Linear(inputs, outputs).requires_grad_(name not in frozen))

        def forward(self, x):
            *branches, head = sorted(self._modules.values(), key=lambda layer: layer.out_features)
            return head(sum(branch(x.flatten(1)).relu() for branch in branches))

    return Net


@pytest.fixture
def run(tmp_path):
    def run(model, rounds):
        return fedddp.run(
            {"data": {"name": "synthetic", "args": {"num_train": 40, "num_test": 10}}},
            {"telemetry": {"tensorboard": False, "progress": "off"}},
            model=model,
            run={
                "dir": str(tmp_path),
                "name": "same",
                "rounds": rounds,
                "resume": "auto",
                "threads": 1,
                "device": "cpu",
            },
        )

    return run


CHANGED = {
    "order": ({"head": (4, 10), "b": (784, 4), "a": (784, 4)}, (), "tensor 1 is a.weight [4, 784] there, head.weight"),
    "equal layers change places": ({"b": (784, 4), "a": (784, 4), "head": (4, 10)}, (), "tensor 1 is a.weight"),
    "a name": ({"a": (784, 4), "c": (784, 4), "head": (4, 10)}, (), "tensor 3 is b.weight [4, 784] there, c.weight"),
    "a shape": ({"a": (784, 5), "b": (784, 5), "head": (5, 10)}, (), "a.weight [4, 784] there, a.weight [5, 784]"),
    "a layer more": ({**LAYERS, "z": (784, 4)}, (), "tensor 7 is nothing there, z.weight [4, 784] here"),
    "a layer less": ({"a": (784, 4), "head": (4, 10)}, (), "tensor 3 is b.weight [4, 784] there, head.weight"),
    "a frozen layer": (LAYERS, ("head",), "tensor 5 is head.weight [10, 4] there, nothing here"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_another_model_does_not_go_on_with_a_checkpoint(run, tmp_path, change):
    run(net(LAYERS), 1)
    layers, frozen, expected = CHANGED[change]
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "lock")
    with pytest.raises(UsageError) as error:
        run(net(layers, frozen), 2)
    assert str(error.value).startswith("run.resume='auto': ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "lock") == before
    assert run(net(LAYERS), 2).server.round == 2


def test_a_run_does_not_go_on_with_other_frozen_weights(run):
    frozen = net(LAYERS, ("a",))
    run(frozen, 1)

    class Other(frozen):
        def __init__(self):
            super().__init__()
            self._modules["a"].bias.data.add_(1)

    Other.__qualname__, Other.__name__ = frozen.__qualname__, frozen.__name__
    with pytest.raises(UsageError, match=r"run.resume='auto': .* frozen parameters or constant buffers"):
        run(Other, 2)
    assert run(frozen, 2).server.round == 2


def rewrite(folder, state):
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "state.json": sha256(folder / "state.json")}))


def test_a_checkpoint_from_before_a_key_goes_on_with_the_keys_default(run, tmp_path):
    run("mlp", 1)
    folder = newest(tmp_path / "same").folder
    state = json.loads((folder / "state.json").read_text())
    del state["config"]["privacy"]["mechanism"], state["config"]["model"]["trainable"], state["constants"]
    rewrite(folder, state)
    assert run("mlp", 2).server.round == 2
    folder = newest(tmp_path / "same").folder
    state["config"]["model"]["hidden"], state["round"] = 300, 2
    rewrite(folder, state)
    with pytest.raises(UsageError, match=r"run.resume='auto': .*model.hidden is 300 there"):
        run("mlp", 3)


def test_a_checkpoint_without_names_goes_on_with_a_warning_if_the_sizes_fit(run, tmp_path, caplog):
    run(net(LAYERS), 1)
    folder = newest(tmp_path / "same").folder
    state = json.loads((folder / "state.json").read_text())
    assert [name for name, _ in state["tensors"]] == [
        f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")
    ]
    del state["tensors"]
    rewrite(folder, state)
    with pytest.raises(UsageError, match=r"6330 numbers.* there, 7910 .*here"):
        run(net({"a": (784, 5), "b": (784, 5), "head": (5, 10)}), 2)
    with caplog.at_level("WARNING", "fedddp"):
        assert run(net(LAYERS), 2).server.round == 2
    assert [str(folder) in line for line in caplog.messages if "names no layers" in line] == [True]


def test_dtypes_and_constants_do_not_count(tmp_path):
    """A precision is a key of the configuration; constants are built from the seed and not saved."""
    spec = FlatSpec.of(nn.Linear(2, 3))
    saved = Saved(1, 9, None, {}, folder=tmp_path, tensors=[("weight", [3, 2]), ("bias", [3])])
    assert saved.unlike(spec) is None
    constant = nn.Linear(2, 3).double()
    constant.register_buffer("table", torch.zeros(4), persistent=False)
    assert saved.unlike(FlatSpec.of(constant)) is None
