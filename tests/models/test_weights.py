"""model.weights: training starts from a file, or a line says what is wrong with it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fedddp
from fedddp.config import UsageError, build, to_dict
from fedddp.flat import flatten
from fedddp.models import MLP
from fedddp.models.weights import start_signature, started_from

SMALL = {
    "data": {"name": "synthetic", "args": {"num_train": 60, "num_test": 20}, "partition": {"num_clients": 3}},
    "telemetry": {"progress": "off", "tensorboard": False},
    "run": {"threads": 1, "rounds": 1},
}
MODEL = MLP(hidden=6, norm="batch")


class WithOwnWeights(nn.Sequential):
    """As torchvision's: ``weights`` is an argument of the constructor."""

    def __init__(self, weights="none", hidden=6):
        super().__init__(MLP(hidden=hidden).build((1, 28, 28), 10))
        self.said = weights


def module():
    return MODEL.build((1, 28, 28), 10)


def saved(folder, ending=".safetensors", **changes):
    """A file of a module's weights, with some of them changed (or taken out: None); the module."""
    there = module()
    tensors = {k: t for k, t in (there.state_dict() | changes).items() if t is not None}
    path = folder / f"weights{ending}"
    save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    return path, there


def started(folder, **sections):
    """w_0 of a run with these sections."""
    experiment = fedddp.assemble(SMALL, {"run.dir": str(folder)}, **sections)
    experiment.close()
    return experiment.server.w


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "ditto"])
def test_training_starts_from_the_weights(tmp_path, ending, algorithm):
    path, there = saved(tmp_path, ending)
    model = {"name": "mlp", "hidden": 6, "norm": "batch", "weights": str(path)}
    w = started(tmp_path, model=model, algorithm=algorithm)
    assert torch.equal(w, flatten(there))
    assert not torch.equal(w, started(tmp_path, model=model | {"weights": "off"}, algorithm=algorithm))


def test_half_precision_is_taken_exactly(tmp_path):
    path, _ = saved(tmp_path, **{k: t.half() for k, t in module().state_dict().items()})
    w = started(tmp_path, model=MLP(hidden=6, norm="batch", weights=str(path)))
    assert torch.equal(w, w.half().float())


def test_a_finished_run_is_where_another_starts(tmp_path):
    first = fedddp.run(SMALL, {"run.dir": str(tmp_path)}, model=MODEL)
    w = started(tmp_path, model=MLP(hidden=6, norm="batch", weights=str(first.folder / "model.safetensors")))
    assert torch.equal(w, first.w)


def test_home_is_expanded(tmp_path, monkeypatch):
    path, there = saved(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(started(tmp_path, model=MLP(hidden=6, norm="batch", weights=f"~/{path.name}")), flatten(there))


NEW = torch.zeros(2)
WRONG = {
    "a name is missing": ({"0.weight": None, "1.weight": None}, "'1.weight'"),
    "a buffer is missing": ({"2.running_mean": None}, "'2.running_mean'"),
    "a name too many": ({"extra": NEW}, "'extra'"),
    "a prefix": ({f"module.{k}": NEW for k in ("1.weight",)} | {"1.weight": None}, "'1.weight'"),
    "another shape": ({"1.bias": torch.zeros(7)}, r"'1.bias' of shape \[7\].* \[6\]"),
    "transposed": ({"1.weight": torch.zeros(784, 6)}, r"\[784, 6\].* \[6, 784\]"),
    "an axis more": ({"1.bias": torch.zeros(1, 6)}, r"\[1, 6\].* \[6\]"),
    "digits that would be lost": ({"1.bias": torch.full((6,), 0.1, dtype=torch.float64)}, "float64.*client.precision"),
    "whole numbers that would be lost": ({"1.bias": torch.full((6,), 2**24 + 1)}, "int64, which float32"),
    "NaN": ({"1.bias": torch.full((6,), torch.nan)}, "'1.bias'.*NaN"),
    "infinite": ({"2.running_var": torch.full((6,), torch.inf)}, "'2.running_var'.*infinite"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_other_weights_are_refused(tmp_path, ending, changes, says):
    path, _ = saved(tmp_path, ending, **changes)
    with pytest.raises(UsageError, match=f"^model.weights=.*{says}") as refused:
        started(tmp_path / "runs", model=MLP(hidden=6, norm="batch", weights=str(path)))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_complex_weights_keep_what_they_have_or_are_refused(tmp_path):
    path, _ = saved(tmp_path, ".pt", **{"1.bias": torch.full((6,), 1j)})
    with pytest.raises(UsageError, match="complex64, which float32"):
        started(tmp_path, model=MLP(hidden=6, norm="batch", weights=str(path)))


def whole_module(path):
    torch.save(module(), path)


def nested(path):
    torch.save({"state_dict": module().state_dict(), "epoch": 3}, path)


FILES = {
    "missing": (lambda path: None, "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "model.safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "neither safetensors"),
    "text": (lambda path: path.write_text("weights, please\n"), "neither safetensors"),
    "a header that promises too much": (lambda path: path.write_bytes(b"\xff" * 64), "neither safetensors"),
    "a pickled module": (whole_module, "neither safetensors"),
    "a checkpoint around the state_dict": (nested, "'state_dict'"),
    "one tensor": (lambda path: torch.save(torch.zeros(3), path), "no state_dict"),
    "half a file": (lambda path: path.write_bytes(saved(path.parent)[0].read_bytes()[:400]), "neither safetensors"),
}


@pytest.mark.parametrize(("make", "says"), FILES.values(), ids=FILES)
def test_what_is_no_weights_is_refused(tmp_path, make, says):
    make(tmp_path / "file")
    with pytest.raises(UsageError, match=f"^model.weights=.*{says}") as refused:
        started(tmp_path, model=MLP(hidden=6, norm="batch", weights=str(tmp_path / "file")))
    assert "\n" not in str(refused.value)


def test_a_class_without_such_an_argument_starts_from_the_file(tmp_path):
    save_file(nn.Linear(784, 10).state_dict(), tmp_path / "w.safetensors")
    table = {"name": "torch.nn:Linear", "in_features": 784, "out_features": 10, "weights": str(tmp_path / "w")}
    section = build({"model": table}).model
    assert (section.weights, section.args) == (str(tmp_path / "w"), {"in_features": 784, "out_features": 10})
    assert to_dict(build({"model": section}))["model"] == table
    assert to_dict(build({"model": table | {"weights": "off"}}))["model"] == {k: table[k] for k in list(table)[:3]}


def test_a_constructor_that_takes_weights_gets_them():
    section = build({"model": {"name": "tests.models.test_weights:WithOwnWeights", "weights": "DEFAULT"}}).model
    assert section.weights is None
    assert section.build((1, 28, 28), 10).said == "DEFAULT"


@pytest.mark.parametrize("value", [3, ["a"], {"a": 1}, True])
def test_weights_that_are_no_name_of_a_file(value):
    for name in ("mlp", "torch.nn:Flatten"):
        if value == 3:
            assert build({"model": {"name": name, "weights": value}}).model.weights == "3"
        else:
            with pytest.raises(UsageError, match=r"model\.weights"):
                build({"model": {"name": name, "weights": value}})


def test_a_task_that_makes_its_own_model_ignores_no_weights(tmp_path):
    path, _ = saved(tmp_path)
    task = fedddp.Task(module, 10)
    with pytest.raises(UsageError, match=r"model\.weights"):
        fedddp.assemble(SMALL, {"model.name": "mlp", "model.weights": str(path), "run.dir": str(tmp_path)}, task=task)


def test_ranks_compare_what_they_start_from():
    one, other = module(), module()
    section = MLP(weights="somewhere")
    assert start_signature(section, one) == start_signature(section, one)
    assert start_signature(section, one) != start_signature(section, other)
    assert start_signature(MLP(), one) == {}


def test_a_head_for_other_classes_starts_anew_and_a_line_says_so(tmp_path, caplog):
    path, there = saved(tmp_path)
    make = started_from(MLP(hidden=6, norm="batch", weights=str(path)), lambda: MODEL.build((1, 28, 28), 7))
    module, second = make(), make()
    own = module.state_dict()
    *body, weight, bias = own
    assert all(torch.equal(own[name], there.state_dict()[name]) for name in body)
    assert own[weight].shape == (7, 6)
    assert not torch.equal(second.state_dict()[weight], own[weight])  # drawn, as without a file
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"has nothing that fits {weight}, {bias}; these start anew" in line


OTHER_HEAD = {
    "only its bias": {"7.bias": torch.zeros(7)},
    "of other inputs": {"7.weight": torch.zeros(7, 5), "7.bias": torch.zeros(7)},
}


@pytest.mark.parametrize("changes", OTHER_HEAD.values(), ids=OTHER_HEAD)
def test_a_last_layer_that_differs_otherwise_is_refused(tmp_path, changes):
    assert changes.keys() <= module().state_dict().keys()
    path, _ = saved(tmp_path, **changes)
    with pytest.raises(UsageError, match=r"^model.weights=.*'7\.\w+' of shape"):
        started(tmp_path / "runs", model=MLP(hidden=6, norm="batch", weights=str(path)))
