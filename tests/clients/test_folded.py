"""fedddp.clients.folded: layers of K clients against K plain layers."""

import pytest
import torch
from torch import nn

from fedddp.clients.folded import FoldedModel, convolution
from fedddp.clients.folded.convolution import FoldedConv2d
from fedddp.flat import FlatModule, settle
from tests.helpers.zoo import FOLDED, SHAPE, Twice, images, start_of, task_of, trainers

K, B = 3, 4
CONVOLUTIONS = {
    "one": nn.Conv2d(1, 3, 1),
    "same": nn.Conv2d(2, 5, 3, padding="same"),
    "valid": nn.Conv2d(2, 5, 3, padding="valid"),
    "oblong": nn.Conv2d(3, 4, (2, 5), stride=(2, 1), padding=(1, 2)),
    "dilated": nn.Conv2d(2, 3, 3, dilation=(2, 1), padding="same"),
    "no bias": nn.Conv2d(2, 4, 3, stride=2, bias=False),
    "wide padding": nn.Conv2d(2, 1, 3, padding=3),
}
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def folded(make, clients=K, **more):
    """A folded model, its clients' weights, and the plain module of each client."""
    torch.manual_seed(0)
    plain = [settle(make().double()) for _ in range(clients)]
    flat = [FlatModule(module) for module in plain]
    w = torch.stack([f.w for f in flat])
    return FoldedModel(settle(make().double()), **more), w, flat


def collected(oracle, w, x, dy):
    """Outputs, and the gradients of sum(outputs dy) with respect to weights and inputs."""
    x, g = x.clone().requires_grad_(), torch.full_like(w, torch.nan)
    oracle.collect(w, g)
    y = oracle.forward(x)
    y.backward(dy)
    return y.detach(), g, x.grad


def plainly(flat, x, dy):
    x = x.clone().requires_grad_()
    y = torch.stack([f.module(own) for f, own in zip(flat, x, strict=True)])
    grads = torch.autograd.grad(y, [x, *(p for f in flat for p in f.params)], dy)
    each = len(flat[0].params)
    rows = [torch.cat([g.reshape(-1) for g in grads[1 + k * each :][:each]]) for k in range(len(flat))]
    return y.detach(), torch.stack(rows), grads[0]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("by_patches", [True, False])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_a_convolution_is_that_of_each_client(monkeypatch, shape, by_patches, layout):
    """Also of inputs that lie channels-last."""
    plain = CONVOLUTIONS[shape]
    monkeypatch.setattr(convolution, "SMALL_PATCH", 10**6 if by_patches else 0)
    oracle, w, flat = folded(lambda: nn.Sequential(nn.Identity(), type(plain)(**arguments(plain))), layout=layout)
    for other in (x := random(K, B, plain.in_channels, 7, 6)), x.mT.contiguous().mT:
        dy = random(*plainly_shape(flat, other), seed=1)
        assert_close(collected(oracle, w, other, dy), plainly(flat, other, dy))
        y = oracle.forward(other).flatten(0, 1)
        assert y.is_contiguous(memory_format=layout)
    (layer,) = oracle._layers
    assert layer.by_patches == by_patches


def arguments(plain):
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {**{key: getattr(plain, key) for key in keys}, "bias": plain.bias is not None}


def plainly_shape(flat, x):
    return (K, *flat[0].module(x[0]).shape)


def test_the_first_layer_goes_by_patches_and_wide_ones_by_the_library():
    small, wide = nn.Conv2d(3, 4, 5), nn.Conv2d(32, 4, 5)
    assert [FoldedConv2d("", c).by_patches for c in (small, wide)] == [True, False]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(K, B, 6), (K, B, 5, 6), (K, B, 2, 5, 6)])
def test_a_linear_layer_is_that_of_each_client(shape, bias):
    oracle, w, flat = folded(lambda: nn.Sequential(nn.Linear(6, 3, bias=bias)))
    x, dy = random(*shape), random(*shape[:-1], 3, seed=1)
    assert_close(collected(oracle, w, x, dy), plainly(flat, x, dy))


@pytest.mark.parametrize("kind", FOLDED)
def test_a_whole_models_gradient_is_that_of_each_client(kind):
    oracle, w, flat = folded(FOLDED[kind])
    x, dy = random(K, B, *SHAPE), random(K, B, 5, seed=1)
    ours, theirs = collected(oracle, w, x, dy), plainly(flat, x, dy)
    assert_close(ours[:2], theirs[:2])


def test_fewer_clients_are_the_first_ones_and_the_others_stay():
    oracle, w, flat = folded(FOLDED["mlp"])
    task = task_of(FOLDED["mlp"])
    x, y = images(K * B).x.view(K, B, *SHAPE), images(K * B).y.view(K, B)
    share = torch.full((K, B), 1 / B, dtype=torch.float64)
    rows = torch.full_like(w, torch.nan)
    oracle.begin(w, rows, 0.1, 2 * B)
    oracle.step(task, x, y, share)
    oracle.step(task, x[:1], y[:1], share[:1])
    oracle.finish()
    for k, (f, steps) in enumerate(zip(flat, (2, 1, 1), strict=True)):
        for _ in range(steps):
            task.loss(f.module(x[k]), y[k]).mean().backward()
            with torch.no_grad():
                for p in f.params:
                    p -= 0.1 * p.grad
                    p.grad = None
        assert (w[k] + rows[k] - f.w).abs().max() < 1e-12


def test_a_layer_used_twice_in_a_step_is_refused_and_in_evaluation_it_is_not():
    oracle, w, flat = folded(Twice)
    oracle.collect(w, torch.zeros_like(w))
    x = random(K, B, *SHAPE)
    with pytest.raises(RuntimeError, match=r"^layer 'inner' is used more than once in a step$"):
        oracle.forward(x)
    with torch.no_grad():
        assert_close([oracle.forward(x)], [torch.stack([f.module(own) for f, own in zip(flat, x, strict=True)])])


FORMS = {"factored": (2,), "dense": (0,), "corrected": (0,)}
"""In batches of 5, client 2 sees so few examples that its layers are factored; client 0's 50 are too many."""


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("then", FORMS)
def test_nothing_of_training_that_failed_reaches_the_next(first, then):
    make = FOLDED["mlp"]
    one, many, _ = trainers(make, width=3)
    w = start_of(make)
    corrections = {"corrected": lambda g, v: 2 * g}
    data = many.data

    class Broken:
        sizes, counted = data.sizes, data.counted

        def gather(self, ids, index):
            x, y = data.gather(ids, index)
            return x, y.index_fill(0, torch.tensor(len(y) - 1), 99)

    for broken in (True, False):
        many.data = Broken() if broken else data
        local = many.on(FORMS[first], 0)
        if broken:
            with pytest.raises(IndexError):
                local.train(w, corrections.get(first))
        else:
            local.train(w, corrections.get(first))
        many.data = data
        result = many.on(FORMS[then], 0).train(w * 0.9, corrections.get(then))
        expected = one.on(FORMS[then], 0).train(w * 0.9, corrections.get(then))
        assert (result.delta - expected.delta).abs().max() < 1e-12


class Halves(nn.Module):
    """A linear layer that sees two rows an example, as one batch: more than are reckoned with."""

    def __init__(self):
        super().__init__()
        self.side, self.head = nn.Linear(32, 16), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.side(x.view(-1, 32)).tanh().view(len(x), -1))


def test_the_factored_form_is_given_up_where_its_rows_run_out():
    one, many, why = trainers(Halves, width=3, local_epochs=1, batch_size=1)
    assert why == "vectorized: 3 clients at once, layers folded over clients"
    w = start_of(Halves)
    expected = torch.cat([one.on((k,), 0).train(w).delta for k in (2, 4, 5)])
    assert (many.on((2, 4, 5), 0).train(w).delta - expected).abs().max() < 1e-12
