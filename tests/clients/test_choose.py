"""fedddp.clients.choose: which trainer a model gets, and why."""

from importlib import import_module

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, VectorizedTrainer, choose
from fedddp.clients.folded.convolution import FoldedConv2d
from fedddp.clients.folded.layer import FoldedLinear
from fedddp.comm import Place
from fedddp.config import UsageError, build
from fedddp.models import MODELS
from fedddp.setup.resolve import resolve
from tests.helpers.support import assemble
from tests.helpers.zoo import (
    BATCHED,
    CLASSES,
    FOLDED,
    HOW,
    SIZES,
    Centred,
    Scaled,
    clients,
    dataset,
    images,
    task_of,
    trainers,
    training,
)

RULE = import_module("fedddp.clients.choose")
OTHERWISE = "clients trained together end elsewhere than one by one"
ALL_REFUSE = "sequential: this model cannot be batched over clients (layers folded over clients: "


class Dependent(nn.Module):
    """What is computed depends on the numbers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(x.flatten(1)) * (2 if x.sum() > 0 else 3)


def perceptron(*middle):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), *middle, nn.Linear(6, CLASSES))


def chosen(make, name="auto", width=0):
    _, trainer, why = trainers(make, name=name, width=width)
    return trainer, why


@pytest.mark.parametrize("model", BATCHED)
def test_the_fastest_way_that_fits_the_model_is_taken(model):
    trainer, why = chosen(BATCHED[model])
    assert isinstance(trainer, VectorizedTrainer)
    assert why == f"vectorized: {trainer.width} clients at once, {HOW[model]}"


@pytest.mark.parametrize(
    ("make", "folded", "vmapped"),
    [
        (perceptron(nn.BatchNorm1d(6)), "2.weight is not of one layer alone", "2.running_mean is a buffer"),
        (perceptron(nn.Dropout(0.5)), OTHERWISE, "vmap: "),
        (perceptron(nn.BatchNorm1d(6, affine=False, track_running_stats=False)), OTHERWISE, OTHERWISE),
        (Centred, OTHERWISE, OTHERWISE),
        (Dependent, OTHERWISE, "vmap: "),
    ],
    ids=["batch norm", "dropout", "batch statistics", "centred", "data-dependent"],
)
@pytest.mark.parametrize("name", ["auto", "vectorized"])
def test_a_model_that_cannot_be_batched_is_trained_one_by_one_and_the_reasons_are_told(make, folded, vmapped, name):
    trainer, why = chosen(make, name)
    assert isinstance(trainer, SequentialTrainer)
    assert why.startswith(ALL_REFUSE + folded)
    assert "; layers folded over clients, contiguous: " in why
    assert f"; torch.func.vmap: {vmapped}" in why
    assert "\n" not in why


def test_vmap_is_for_small_models_on_a_cpu_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(RULE, "SMALL_MODEL", 329)
    trainer, why = chosen(Scaled)
    assert isinstance(trainer, SequentialTrainer)
    assert why == "sequential: torch.func.vmap gains nothing on a CPU for 330 parameters"
    assert chosen(Scaled, "vectorized")[1].endswith("clients at once, torch.func.vmap")
    assert isinstance(chosen(FOLDED["mlp"])[0], VectorizedTrainer)  # folded layers gain at any size


def test_sequential_is_not_argued_with(monkeypatch):
    monkeypatch.setattr(RULE, "_try_out", None)
    trainer, why = chosen(FOLDED["mlp"], "sequential", width=7)
    assert (type(trainer), why) == (SequentialTrainer, "sequential: as configured")


@pytest.mark.parametrize(("model", "width"), [("logistic", 64), ("mlp", 42), ("cnn", 5)])
def test_as_many_clients_as_stay_near_the_cores(model, width, digits):
    """2^23 parameters: 42 of 199,210, five of 1,663,370, and never more than 64 clients."""
    build_model = MODELS[model]()
    task = task_of(lambda: build_model.build((1, 28, 28), 10), torch.float32)
    assert choose(task, clients(), digits.test, training(dtype=torch.float32))[0].width == width


def test_a_width_that_is_given_is_taken_and_a_model_above_the_rule_gets_one_client(monkeypatch):
    assert chosen(FOLDED["mlp"], width=7)[0].width == 7
    monkeypatch.setitem(RULE.PARAMETERS_AT_ONCE, "cpu", 100)
    trainer, why = chosen(FOLDED["mlp"])
    assert (trainer.width, why) == (1, "vectorized: 1 client at once, layers folded over clients")


@pytest.mark.parametrize(
    ("layer", "method", "model"),
    [
        (FoldedLinear, "pull", "mlp"),
        (FoldedLinear, "learn_from", "logistic"),
        (FoldedConv2d, "gradients", "cnn"),
        (FoldedConv2d, "product", "odd convolutions"),
    ],
)
def test_a_layer_that_computes_something_else_is_found_out(monkeypatch, layer, method, model):
    right = getattr(layer, method)

    def wrong(self, x, *args):
        return right(self, x * 1.001, *args)

    monkeypatch.setattr(layer, method, wrong)
    trainer, why = chosen(FOLDED[model])
    assert why == f"vectorized: {trainer.width} clients at once, torch.func.vmap"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_examples_are_enough_to_try_a_model_out(count):
    few = images(count)
    for make, kind in ((FOLDED["mlp"], VectorizedTrainer), (perceptron(nn.BatchNorm1d(6)), SequentialTrainer)):
        assert type(choose(task_of(make), clients(), few, training())[0]) is kind


def test_an_exact_sum_trains_one_by_one():
    """The last bits of a product depend on who shares it."""
    exact = {"aggregation": {"sum": "exact"}}
    assert resolve(build(exact), Place()).client.execution.width == 1
    assert resolve(build(exact, {"client": {"execution": {"width": 1}}}), Place()).client.execution.width == 1
    assert resolve(build({"client": {"execution": {"width": 4}}}), Place()).client.execution.width == 4
    with pytest.raises(UsageError, match=r"^client\.execution\.width=4: aggregation\.sum=exact promises .*$"):
        resolve(build(exact, {"client": {"execution": {"width": 4}}}), Place())


def test_the_choice_is_logged_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("fedddp.setup.assemble.log.info", lambda text, *args: lines.append(text % args))
    assemble(tmp_path, dataset(), SIZES, task=task_of(FOLDED["logistic"], torch.float32))
    chosen = [line for line in lines if line.startswith("clients train")]
    assert chosen == ["clients train vectorized: 6 clients at once, layers folded over clients"]
