"""fedddp.models: the published sizes, and modules of the user's."""

import inspect

import pytest
import torch
from torch import nn

from fedddp.flat import FlatSpec
from fedddp.models import CNN, MLP, MODELS, VGG, ImportedModule, LeNet, ResNet
from fedddp.tasks import Task

OTHERS = {"gan", "gpt", "lstm", "text_mean"}
CLASSIFIERS = sorted(name for name in MODELS.keys() - OTHERS if ":" not in name)
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (CNN(), GREY, 1_663_370),
        (MLP(), GREY, 199_210),
        (LeNet(), GREY, 44_426),
        (LeNet(), COLOUR, 62_006),
        (VGG(), COLOUR, 9_750_922),
        (ResNet(), COLOUR, 272_474),
        (ResNet(depth=18), COLOUR, 11_173_962),
    ],
)
def test_parameter_counts_are_those_of_the_docstrings(model, shape, parameters):
    spec = FlatSpec.of(model.build(shape, 10))
    assert spec.num_trainable == spec.dim == parameters
    assert f"{parameters:,}" in inspect.getdoc(type(model))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("shape", "num_classes"), [(GREY, 10), (COLOUR, 7)])
def test_every_model_scores_classes(name, shape, num_classes):
    module = MODELS[name]().build(shape, num_classes)
    outputs = module(torch.zeros(2, *shape))
    assert outputs.shape == (2, num_classes)
    assert outputs.requires_grad


def test_every_model_looks_at_the_whole_image():
    for name in CLASSIFIERS:
        module = MODELS[name]().build(GREY, 10)
        x = torch.zeros(1, *GREY, requires_grad=True)
        module(x + torch.rand(GREY, generator=torch.Generator().manual_seed(0))).sum().backward()
        assert (x.grad != 0).float().mean() > 0.5, name


def test_hidden_units_are_a_key_of_the_mlp():
    assert FlatSpec.of(MLP(hidden=8).build((1, 2, 2), 3)).dim == 4 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3


def test_an_imported_module_gets_its_own_keys_and_nothing_else():
    module = ImportedModule("torch.nn:Linear", nn.Linear, {"in_features": 4, "out_features": 2}).build(GREY, 10)
    assert isinstance(module, nn.Linear)
    assert module.weight.shape == (2, 4)


def test_initial_parameters_are_a_function_of_the_seed():
    task = Task(lambda: MLP(hidden=8).build(GREY, 10), 10)
    first = task.initial_params(0)
    torch.rand(3)
    before = torch.get_rng_state()
    assert torch.equal(task.initial_params(0), first)
    assert not torch.equal(task.initial_params(1), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_and_hits_are_of_each_example():
    task = Task(lambda: nn.Linear(1, 1), 3)
    outputs = torch.tensor([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0]])
    y = torch.tensor([2, 1])
    expected = torch.tensor([3.0, 1 + torch.tensor([-1.0, -2.0]).exp().sum().item()]).log()
    expected[1] = torch.logsumexp(outputs[1], 0) - 3
    assert torch.allclose(task.loss(outputs, y), expected, atol=1e-6, rtol=0)
    assert task.correct(outputs, y).tolist() == [False, True]
