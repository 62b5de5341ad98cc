"""The model svm: random features that approximate the Gaussian kernel, drawn alike everywhere and never sent."""

import math

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, choose
from fedddp.federation import federate
from fedddp.flat import FlatModule, FlatSpec, flatten
from fedddp.models import SVM
from fedddp.models.dense import RandomFeatures
from fedddp.optim import SGD, Adam
from fedddp.tasks import Task
from fedddp.tasks.losses import MulticlassHinge
from tests.helpers.support import assemble, few_digits
from tests.helpers.zoo import CLASSES, SHAPE, clients, images, task_of, training


def task(gamma=0.05):
    return Task(
        task_of(lambda: SVM(features=30, gamma=gamma).build(SHAPE, CLASSES)).make_model, CLASSES, MulticlassHinge()
    )


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
def test_inner_products_of_features_are_the_gaussian_kernel(gamma):
    """Within 4 / sqrt(F) of exp(-gamma |x - y|^2)."""
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    z = RandomFeatures(5, 20_000, gamma)(x)
    kernel = (-gamma * torch.cdist(x, x).square()).exp()
    assert (z @ z.t() - kernel).abs().max() < 4 / math.sqrt(20_000)
    assert kernel.min() < 0.9


def test_only_the_linear_layer_trains_and_travels():
    module = task().model(0)
    spec = FlatSpec.of(module)
    assert spec.dim == spec.num_trainable == 30 * CLASSES + CLASSES
    assert flatten(module).shape == (spec.dim,)
    assert spec.names == ("1.weight", "1.bias")


def test_features_are_a_function_of_the_seed():
    features = [task().model(seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(features[0].weight, features[1].weight)
    assert torch.equal(features[0].phase, features[1].phase)
    assert not torch.equal(features[0].weight, features[2].weight)
    doubled = task(gamma=0.2).model(0)[0].weight
    torch.testing.assert_close(doubled, 2 * features[0].weight)


class Drifting(nn.Module):
    """A constant that is not: changed in every forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        self.scale += 1
        return self.scale * self.linear(x)


def test_a_buffer_outside_the_vector_returns_to_what_it_was():
    flat = FlatModule(Drifting())
    assert flat.spec.dim == 6
    w, x = flat.w.clone(), torch.ones(1, 2)
    first = flat.module(x).detach()
    flat.load(w)
    assert torch.equal(flat.module(x), first)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5), SGD(lr=0.5, weight_decay=0.01), Adam(lr=0.01, weight_decay=0.01)])
def test_clients_are_trained_together_by_folded_layers(optimizer):
    spec = training(optimizer, batch_size=5, seed=3)
    many, why = choose(task(), clients(), images(8), spec, width=3)
    assert "layers folded over clients" in why
    one = SequentialTrainer(task(), clients(), spec)
    start = task().initial_params(3)
    expected = torch.cat([one.on((k,), 0).train(start).delta for k in (0, 2, 3)])
    torch.testing.assert_close(many.on((0, 2, 3), 0).train(start).delta, expected, rtol=1e-9, atol=1e-11)


def test_the_same_steps_as_torchs_adam():
    stream = torch.Generator().manual_seed(0)
    mine, theirs = torch.ones(4), nn.Parameter(torch.ones(4))
    settings = {"lr": 0.1, "weight_decay": 0.1}
    optimizer, reference = Adam(beta1=0.5, **settings), torch.optim.Adam([theirs], betas=(0.5, 0.999), **settings)
    state = optimizer.init([mine])
    for _ in range(5):
        theirs.grad = torch.randn(4, generator=stream)
        optimizer.step_([mine], [theirs.grad], state)
        reference.step()
    torch.testing.assert_close(mine, theirs.data, rtol=1e-5, atol=1e-6)


def test_a_kernel_separates_what_a_line_does_not(tmp_path):
    """Digits by a few examples: better than chance by far, trained federatedly under the hinge."""
    sections = {
        "model": {"name": "svm", "features": 300, "gamma": 0.001},
        "loss": {"name": "multiclass_hinge"},
        "client": {"optimizer": {"name": "adam", "lr": 0.05}, "batch_size": 20},
        "run": {"rounds": 4},
        "evaluate": {"every": 0},
    }
    f, server = assemble(tmp_path, few_digits(600, 200), [300, 300], **sections)
    end = federate(f, server)
    assert f.evaluation.server.score(end.w).accuracy > 0.7
    assert len(end.w) == 3010
