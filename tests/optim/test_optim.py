"""fedddp.optim: the same numbers as torch.optim, on views and on one flat vector."""

import itertools

import pytest
import torch

from fedddp.optim import SGD

SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.05, "momentum": 0.5, "nesterov": True},
    {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]
SHAPES = [(3, 4), (5,), ()]


def tensors(seed):
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=stream) for shape in SHAPES]


def ours(settings, params, steps=6):
    optimizer = SGD(**settings)
    state = optimizer.init(params)
    for step in range(steps):
        optimizer.step_(params, tensors(100 + step), state)
    return params


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_sgd_takes_the_steps_of_torch(settings):
    """Bit for bit: both are the same sequence of roundings."""
    theirs = [torch.nn.Parameter(t) for t in tensors(0)]
    optimizer = torch.optim.SGD(theirs, foreach=True, **settings)
    for step in range(6):
        for parameter, gradient in zip(theirs, tensors(100 + step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    for mine, parameter in zip(ours(settings, tensors(0)), theirs, strict=True):
        assert torch.equal(mine, parameter.data)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_one_flat_vector_moves_like_its_layers(settings):
    layers = torch.cat([p.reshape(-1) for p in ours(settings, tensors(0))])
    flat, optimizer = [torch.cat([p.reshape(-1) for p in tensors(0)])], SGD(**settings)
    state = optimizer.init(flat)
    for step in range(6):
        optimizer.step_(flat, [torch.cat([g.reshape(-1) for g in tensors(100 + step)])], state)
    assert torch.equal(flat[0], layers)


def test_every_setting_makes_a_difference():
    results = [torch.cat([p.reshape(-1) for p in ours(settings, tensors(0))]) for settings in SETTINGS]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_gradients_are_not_changed(settings):
    params, grads, optimizer = tensors(0), tensors(1), SGD(**settings)
    state = optimizer.init(params)
    for _ in range(2):
        optimizer.step_(params, grads, state)
    assert all(torch.equal(g, h) for g, h in zip(grads, tensors(1), strict=True))


def test_what_is_remembered_is_the_running_gradient():
    params = [torch.zeros(2)]
    assert SGD().init(params) == {}
    optimizer = SGD(lr=1.0, momentum=0.5)
    state = optimizer.init(params)
    optimizer.step_(params, [torch.tensor([1.0, 2.0])], state)
    optimizer.step_(params, [torch.tensor([1.0, 0.0])], state)
    assert state["momentum"][0].tolist() == [1.5, 1.0]
    assert params[0].tolist() == [-2.5, -3.0]
