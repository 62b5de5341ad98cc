"""What an import path may name, found out without calling it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fedddp.config import UsageError, build, parse
from fedddp.data.datasets import load
from fedddp.registry.kinds import unfit
from fedddp.tasks.losses import Loss
from fedddp.telemetry import Sink
from fedddp.telemetry.loggers import find

HERE = __name__
called = []


def made(width: int = 3) -> nn.Linear:
    return nn.Linear(width, 2)


def unannotated(width: int = 3):
    called.append(width)
    return nn.Linear(width, 2)


def of_another_kind(width: int = 3) -> dict:
    called.append(width)
    return {}


def of_no_name() -> "Nowhere":  # noqa: F821
    called.append(0)


module = nn.Linear(3, 2)


@dataclass(frozen=True)
class NoLoss:
    epsilon: float = 1.0


class HalfALogger:
    def __init__(self, run):
        called.append(run)

    def round(self, record): ...


COMMANDS = {
    "model.name": [
        "os:system", "os:popen", "subprocess:call", "subprocess:Popen", "builtins:eval", "builtins:exec", "torch:load",
        "shutil:rmtree", "pickle:loads", "collections:OrderedDict", f"{HERE}:unannotated", f"{HERE}:of_another_kind",
        f"{HERE}:of_no_name", f"{HERE}:module", "fedddp.optim:SGD",
    ],
    "algorithm.name": ["os:system", "fedddp.optim:SGD", "fedddp.models:MLP", "subprocess:Popen"],
    "client.optimizer.name": ["fedddp.algorithms:FedAvg", "fedddp.models:MLP", "os:system"],
    "loss.name": [f"{HERE}:NoLoss", "os:system"],
    "task.name": ["fedddp.algorithms:FedAvg"],
    "data.partition.name": ["fedddp.algorithms:FedAvg", "os:system"],
    "aggregation.rule.name": ["fedddp.algorithms:FedAvg"],
    "aggregation.compression.name": ["fedddp.algorithms:FedAvg"],
    "cohort.sampler.name": ["fedddp.algorithms:FedAvg"],
    "attack.name": ["fedddp.algorithms:FedAvg"],
    "client.schedule.name": ["fedddp.algorithms:FedAvg"],
}  # fmt: skip
CASES = [(key, path) for key, paths in COMMANDS.items() for path in paths]


@pytest.mark.parametrize(("key", "path"), CASES, ids=[f"{key}={path}" for key, path in CASES])
def test_an_import_path_to_another_kind_is_one_line_and_nothing_is_called(key, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called.clear()
    others = {"model.name": ["--model.command=touch called", "--model.cmd=touch called", "--model.args=touch called"]}
    for other in others.get(key, [""]):
        with pytest.raises(UsageError, match=rf"^{key}='{path}': ") as refused:
            build(*parse([f"--{key}={path}", *filter(None, [other])]).layers)
        assert "\n" not in str(refused.value)
    assert not called
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["os:system", "os:popen", "subprocess:call", f"{HERE}:unannotated"])
def test_a_dataset_is_a_class_or_says_that_it_returns_one(path):
    called.clear()
    with pytest.raises(UsageError, match=rf"^data\.name='{path}': is a \w+ that does not say what it returns; "):
        load(path, Path("data"), False, {})
    assert not called


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("os:system", "that does not say what it returns"),
        (f"{HERE}:HalfALogger", r"is no Sink \(it has no close\)"),
        ("builtins:print", "that does not say what it returns"),
    ],
)
def test_a_logger_has_the_methods_of_one(path, told):
    called.clear()
    with pytest.raises(UsageError, match=rf"^telemetry\.loggers='{path}': .*{told}"):
        find([path])
    assert not called


@pytest.mark.parametrize("path", ["torch.nn:Linear", f"{HERE}:made"])
def test_a_module_class_and_a_function_that_says_it_returns_one_are_models(path):
    keys = {"in_features": 4, "out_features": 2} if path == "torch.nn:Linear" else {"width": 4}
    config = build({"model": {"name": path, **keys}})
    assert config.model.build((4,), 2)(torch.zeros(1, 4)).shape == (1, 2)


def test_what_fits_is_a_subclass_or_has_the_methods():
    class Duck:
        def round(self, record): ...

        def close(self, summary): ...

    class Called:
        def __call__(self, outputs, y): ...

    assert not unfit(Duck, Sink)
    assert not unfit(Called, Loss)
    assert unfit(Duck, Loss) == "is no Loss (it has no __call__); docs/extending.md says what each key takes"
    assert (
        unfit(of_another_kind, nn.Module)
        == "returns dict, which is no Module; docs/extending.md says what each key takes"
    )
    assert unfit(os.system, nn.Module)
    assert unfit(subprocess.Popen, nn.Module)
