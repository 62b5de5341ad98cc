"""Gradient matching on problems small enough to be solved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.privacy.attacks.gradient_matching import cosine, dlg, idlg, total_variation
from fedddp.rng import global_seed

SHAPE = (1, 4, 4)


def problem(activation, hidden=24, examples=1):
    """A small network in float64, its inputs, labels, and their gradient."""
    with global_seed(0, "matching"):
        layers = [nn.Flatten(), nn.Linear(16, hidden), activation, nn.Linear(hidden, 4)]
        module = nn.Sequential(*layers).double()
        x, y = torch.rand(examples, *SHAPE, dtype=torch.float64), torch.tensor([2, 0][:examples])
    loss = F.cross_entropy(module(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
    return module, x, y, gradient


def test_dlg_finds_input_and_label():
    module, x, y, gradient = problem(nn.Sigmoid())
    found = dlg(module, gradient, SHAPE, 4, steps=5, restarts=1)
    assert found.objective < 1e-8
    assert found.y.tolist() == y.tolist()
    assert (found.x - x).abs().max() < 0.02


def test_idlg_finds_the_input():
    module, x, y, gradient = problem(nn.Sigmoid())
    found = idlg(module, gradient, SHAPE, steps=20)
    assert found.y.tolist() == y.tolist()
    assert (found.x - x).abs().max() < 0.02


def test_another_gradient_gives_another_input():
    """Held-out control: what was found comes from the gradient, not from the search."""
    module, x, _, gradient = problem(nn.Sigmoid())
    loss = F.cross_entropy(module(x.flip(-1)), torch.tensor([1]))
    other = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
    assert (idlg(module, other, SHAPE, steps=20, restarts=1).x - x).abs().max() > 0.2
    assert not torch.equal(other, gradient)


def test_cosine_finds_two_inputs_behind_a_relu():
    module, x, y, gradient = problem(nn.ReLU(), hidden=64, examples=2)
    found = cosine(module, gradient, SHAPE, y, low=0.0, high=1.0, tv=0.0, steps=400)
    assert found.objective < 1e-3
    assert (found.x - x).abs().max() < 0.1
    assert found.x.min() >= 0
    assert found.x.max() <= 1


def test_cosine_does_not_need_the_gradients_length():
    module, x, y, gradient = problem(nn.ReLU(), hidden=64)
    found = cosine(module, 0.01 * gradient, SHAPE, y, low=0.0, high=1.0, tv=0.0, steps=400)
    assert (found.x - x).abs().max() < 0.1


def test_total_variation_by_hand():
    picture = torch.tensor([[0.0, 1.0], [4.0, 1.0]])
    assert total_variation(picture) == pytest.approx((4 + 0) / 2 + (1 + 3) / 2)
