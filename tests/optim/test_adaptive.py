"""Adaptive optimizers: torch.optim's numbers on clients, Reddi et al.'s on a server; rows that are done stay done."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedddp.optim import SGD, Adagrad, Adam, AdamW, Yogi, scaled

THEIRS = {Adam: torch.optim.Adam, AdamW: torch.optim.AdamW, Adagrad: torch.optim.Adagrad}
SETTINGS = [
    (Adam, {}),
    (Adam, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.05}),
    (AdamW, {"lr": 0.05, "beta1": 0.0, "weight_decay": 0.3}),
    (Adagrad, {"lr": 0.1}),
    (Adagrad, {"lr": 0.1, "eps": 1e-2, "weight_decay": 0.1, "initial_accumulator": 0.2}),
]
SERVER = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "bias_correction": False, "initial_accumulator": 1e-6}
EVERY = [Adam(), AdamW(), Yogi(), Adagrad()]
SHAPES = [(3, 4), (5,), ()]


def tensors(seed, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=stream, dtype=dtype) for shape in SHAPES]


def theirs_of(cls, settings):
    names = {"initial_accumulator": "initial_accumulator_value"}
    keys = {names.get(k, k): v for k, v in settings.items() if k not in ("beta1", "beta2")}
    if cls is not Adagrad:
        keys["betas"] = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
    return THEIRS[cls], keys


def moved(optimizer, params, steps=6, state=None, first=0):
    state = optimizer.init(params) if state is None else state
    for step in range(first, first + steps):
        optimizer.step_(params, tensors(100 + step), state)
    return params, state


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_the_steps_are_those_of_torch(cls, settings):
    theirs = [torch.nn.Parameter(t) for t in tensors(0)]
    make, keys = theirs_of(cls, settings)
    reference = make(theirs, foreach=True, **keys)
    for step in range(6):
        for parameter, gradient in zip(theirs, tensors(100 + step), strict=True):
            parameter.grad = gradient
        reference.step()
    for mine, parameter in zip(moved(cls(**settings), tensors(0))[0], theirs, strict=True):
        torch.testing.assert_close(mine, parameter.data, rtol=1e-13, atol=1e-15)
    assert (theirs[1].data - tensors(0)[1]).abs().max() > 1e-3


def square_of_reddi(name, v, g):
    if name == "yogi":
        return v - 0.01 * g * g * math.copysign(1, v - g * g)
    return 0.99 * v + 0.01 * g * g


@pytest.mark.parametrize(("name", "cls"), [("adam", Adam), ("yogi", Yogi)])
def test_on_a_server_they_are_algorithm_2_of_reddi_et_al(name, cls):
    """m and v without correction, v_0 = tau^2, x <- x - lr m / (sqrt(v) + tau); gradients that shrink and grow."""
    w, optimizer = [torch.tensor([1.0], dtype=torch.float64)], cls(**SERVER)
    state = optimizer.init(w)
    x, m, v = 1.0, 0.0, 1e-6
    for g in (0.5, -0.3, 0.01, 1e-5, 2.0, 0.0):
        optimizer.step_(w, [torch.tensor([g], dtype=torch.float64)], state)
        m, v = 0.9 * m + 0.1 * g, square_of_reddi(name, v, g)
        x -= 0.1 * m / (math.sqrt(v) + 1e-3)
        assert w[0].item() == pytest.approx(x, abs=1e-13)
    assert state["square"][0].item() == pytest.approx(v, abs=1e-15)


def test_yogis_defaults_are_the_servers():
    assert Yogi(lr=0.1) == Yogi(**SERVER)


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda o: type(o).__name__)
def test_a_row_that_is_done_is_not_counted_on(optimizer):
    """Three rows, the middle one without the third step, as the vectorized trainer moves them."""
    rows = [torch.full((2,), float(k), dtype=torch.float64) for k in range(3)]
    state = optimizer.init(rows)
    for step, at_work in enumerate(([0, 1, 2], [0, 1, 2], [0, 2])):
        grads = [torch.full((2,), 0.1 * (k + 1) * (step + 1), dtype=torch.float64) for k in at_work]
        moments = {name: [vectors[i] for i in at_work] for name, vectors in state.items()}
        optimizer.step_([rows[i] for i in at_work], grads, moments)
    for k, steps in enumerate((3, 2, 3)):
        alone = [torch.full((2,), float(k), dtype=torch.float64)]
        own = optimizer.init(alone)
        for step in range(steps):
            optimizer.step_(alone, [torch.full((2,), 0.1 * (k + 1) * (step + 1), dtype=torch.float64)], own)
        assert torch.equal(alone[0], rows[k])
        assert all(torch.equal(own[name][0], state[name][k]) for name in state)
    optimizer.step_([], [], {name: [] for name in state})  # nobody at work


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda o: type(o).__name__)
def test_what_is_remembered_survives_a_file_and_gradients_are_not_changed(optimizer, tmp_path):
    whole, _ = moved(optimizer, tensors(0), 6)
    half, state = moved(optimizer, tensors(0), 3)
    assert all(vector.dim() for name in state for vector in state[name][:2])  # [d]: a 0-d tensor is no vector
    save_file({f"{name}/{i}": v for name in state for i, v in enumerate(state[name])}, tmp_path / "s")
    loaded = load_file(tmp_path / "s")
    again = {name: [loaded[f"{name}/{i}"] for i in range(len(half))] for name in state}
    rest, _ = moved(optimizer, half, 3, again, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    grads = tensors(1)
    optimizer.step_(tensors(0), grads, optimizer.init(tensors(0)))
    assert all(torch.equal(g, h) for g, h in zip(grads, tensors(1), strict=True))


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}])
def test_the_weight_of_a_constant_gradient_is_how_far_it_moves(momentum):
    optimizer, steps = SGD(lr=0.1, **momentum), torch.tensor([0, 1, 2, 7])
    for tau, weight in zip(steps.tolist(), optimizer.gradient_weight(steps).tolist(), strict=True):
        w = [torch.zeros(1, dtype=torch.float64)]
        state = optimizer.init(w)
        for _ in range(tau):
            optimizer.step_(w, [torch.ones(1, dtype=torch.float64)], state)
        assert -w[0].item() == pytest.approx(weight, abs=1e-12)
    assert all(adaptive.gradient_weight(steps) is None for adaptive in EVERY)


def test_a_factor_scales_the_learning_rate_and_nothing_else():
    assert scaled(Adam(lr=0.2, beta1=0.5), 0.5) == Adam(lr=0.1, beta1=0.5)
    plain = SGD(lr=0.3)
    assert scaled(plain, 1.0) is plain
    with pytest.raises(ValueError, match="has no lr"):
        scaled(object(), 0.5)
