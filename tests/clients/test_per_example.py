"""fedddp.clients.private: clipped sums of per-example gradients, against one backward pass an example and opacus."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedddp.clients.private import ghost, oracle
from fedddp.clients.private.ghost import GhostExamples
from fedddp.clients.private.oracle import VmappedExamples, refuse_mixing
from fedddp.models import CNN, MLP
from tests.helpers.zoo import BATCHED, CLASSES, CONTIGUOUS, FOLDED, images, start_of, task_of

K, B = 3, 7


def build(way, make, dtype=torch.float64):
    module = task_of(make, dtype).model(3)
    if way == "vmap":
        return VmappedExamples(module)
    layout = torch.contiguous_format if make in CONTIGUOUS.values() else torch.channels_last
    return GhostExamples(module, layout=layout)


WAYS = [("vmap", model) for model in BATCHED] + [("ghost", model) for model in FOLDED | CONTIGUOUS]


def batch(dtype=torch.float64):
    """Three clients of up to seven examples, at weights of their own."""
    few = images(K * B)
    mask = torch.arange(B) < torch.tensor([7, 2, 5]).view(K, 1)
    return few.x.to(dtype).unflatten(0, (K, B)), few.y.view(K, B), mask


def weights(make, dtype=torch.float64):
    return start_of(make, dtype) * torch.tensor([[1.0], [0.7], [1.2]], dtype=dtype)


def sums(way, make, x, y, mask, clip, dtype=torch.float64, w=None):
    """(the sums [K, P], the norms [K, B])."""
    clipped = build(way, make, dtype)
    w = weights(make, dtype) if w is None else w
    g = torch.full_like(w[:, : clipped.spec.num_trainable], torch.nan)
    clipped.collect(w, g)
    norms = clipped.step(task_of(make, dtype), x, y, mask, clip)
    return g, norms


def one_by_one(make, x, y):
    """Each example's gradient [K, B, P], by one backward pass each."""
    task, rows = task_of(make), []
    module = task.model(3)
    spec = oracle.FlatSpec.of(module)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    for k, w in enumerate(weights(make)):
        for b in range(B):
            views = {name: view.clone().requires_grad_() for name, view in spec.views(w).items()}
            loss = task.loss(functional_call(module, views, (x[k, b : b + 1],)), y[k, b : b + 1]).sum()
            grads = torch.autograd.grad(loss, [views[name] for name in trained])
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).view(K, B, -1)


@pytest.mark.parametrize(("way", "model"), WAYS)
def test_sums_are_those_of_gradients_taken_and_clipped_one_by_one(way, model):
    make = BATCHED[model]
    x, y, mask = batch()
    each = one_by_one(make, x, y)
    norms = each.norm(dim=2)
    clip = float(norms.median())
    factor = (clip / norms).clamp(max=1) * mask
    assert 0 < (factor < 1).sum() < factor.numel()
    got, measured = sums(way, make, x, y, mask, clip)
    assert torch.allclose(measured, norms, rtol=1e-9, atol=0)
    expected = (factor.unsqueeze(2) * each).sum(dim=1)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("way", ["vmap", "ghost"])
def test_gradients_of_the_cnn_are_those_of_opacus(way):
    """Example by example: nobody is clipped and one example at a time is not padding."""
    opacus = pytest.importorskip("opacus")
    make = BATCHED["cnn"]
    task, module = task_of(make, torch.float32), task_of(make, torch.float32).model(3)
    x, y, _ = (part[:1] for part in batch(torch.float32))
    sampled = opacus.GradSampleModule(module, loss_reduction="sum")
    task.loss(sampled(x[0]), y[0]).sum().backward()
    theirs = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], dim=1)
    w, scale = weights(make, torch.float32)[:1], float(theirs.abs().max())
    assert scale > 0.1
    for b in range(B):
        got, norms = sums(way, make, x, y, torch.arange(B).view(1, B) == b, 1e6, torch.float32, w)
        assert (got[0] - theirs[b]).abs().max() <= 1e-6
        assert norms[0, b] == pytest.approx(float(theirs[b].norm()), rel=1e-5)


@pytest.mark.parametrize("way", ["vmap", "ghost"])
@pytest.mark.parametrize("size", [1.0, 1e8])
@pytest.mark.parametrize("model", ["mlp", "odd convolutions"])
def test_no_example_adds_more_than_the_clip(way, model, size):
    """Also in single precision, whose rounding clipping has to stay ahead of, and whatever the inputs' size."""
    x, y, mask = batch(torch.float32)
    w, clipped, clip = weights(BATCHED[model], torch.float32), build(way, BATCHED[model], torch.float32), 0.3
    g = torch.empty_like(w)
    clipped.collect(w, g)
    reached = []
    for b in range(B):
        alone = mask & (torch.arange(B) == b)
        norms = clipped.step(task_of(BATCHED[model], torch.float32), x * size, y, alone, clip)[:, b]
        lengths = g.double().norm(dim=1)
        assert (lengths <= clip).all()
        reached += (lengths / norms.clamp(max=clip))[alone[:, b] & norms.isfinite() & (norms > 0)].tolist()
    assert len(reached) > 3
    assert min(reached) > 1 - 2e-5  # and hardly less than its own, or the clip


@pytest.mark.parametrize("way", ["vmap", "ghost"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "odd convolutions", "sequences"])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_what_is_not_finite_adds_nothing_and_harms_nobody(way, model, odd):
    make = BATCHED[model]
    x, y, mask = batch()
    without = mask.clone()
    without[0, 4] = without[2, 0] = False
    expected, _ = sums(way, make, x, y, without, 0.5)
    broken = x.clone()
    broken[0, 4] = broken[2, 0] = odd
    got, norms = sums(way, make, broken, y, mask, 0.5)
    assert (~norms.isfinite()).nonzero().tolist() == [[0, 4], [2, 0]]
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("way", "model"), [("vmap", "mlp"), ("ghost", "mlp"), ("ghost", "cnn"), ("vmap", "group norm")]
)
def test_what_pads_adds_nothing_whatever_it_is(way, model):
    x, y, mask = batch()
    expected, _ = sums(way, BATCHED[model], x, y, mask, 0.5)
    for odd in (torch.nan, 1e30, 0.0):
        padded = torch.where(mask.view(K, B, 1, 1, 1), x, odd)
        got, _ = sums(way, BATCHED[model], padded, y.where(mask, 0), mask, 0.5)
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("way", "model"), [("vmap", "mlp"), ("ghost", "mlp"), ("ghost", "cnn")])
def test_examples_taken_some_at_a_time_add_up_to_the_same(way, model, monkeypatch):
    """Memory is bounded: the batch is taken in parts, of one example of each client if need be."""
    make, passes = BATCHED[model], []
    x, y, mask = batch()
    expected, norms = sums(way, make, x, y, mask, 0.5)
    taken = GhostExamples._pass if way == "ghost" else VmappedExamples.gradients

    def noted(self, task, x, y):
        passes.append(x.shape[1])
        return taken(self, task, x, y)

    monkeypatch.setattr(GhostExamples, "_pass", noted)
    monkeypatch.setattr(VmappedExamples, "gradients", noted)
    for module in (ghost, oracle):
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", {"cpu": 1})
    got, same = sums(way, make, x, y, mask, 0.5)
    assert set(passes) == {1}
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(same, norms, rtol=1e-12)


def test_what_an_example_takes_is_found_once_and_depends_on_the_model_alone():
    """Or a resumed run would cut its batches otherwise, and round otherwise."""
    make = BATCHED["cnn"]
    clipped, w = build("ghost", make), weights(make)
    x, y, mask = batch()
    results = []
    for _ in range(2):
        g = torch.zeros_like(w)
        clipped.collect(w, g)
        clipped.step(task_of(make), x, y, mask, 0.5)
        results.append(g)
    assert torch.equal(*results)
    other = build("ghost", make)
    other.collect(w[:1], torch.zeros_like(w[:1]))
    other.step(task_of(make), x[:1, :2], y[:1, :2], mask[:1, :2], 0.5)
    assert clipped._numbers == other._numbers > 0


@pytest.mark.parametrize("way", ["vmap", "ghost"])
def test_the_first_clients_alone(way):
    """Those at work; the others' sums stay what they were."""
    make = BATCHED["mlp"]
    x, y, mask = batch()
    expected, _ = sums(way, make, x, y, mask, 0.5)
    clipped, w = build(way, make), weights(make)
    g = torch.full_like(w, 7.0)
    clipped.collect(w, g)
    clipped.step(task_of(make), x[:2], y[:2], mask[:2], 0.5)
    assert torch.allclose(g[:2], expected[:2], rtol=1e-12)
    assert (g[2] == 7).all()


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        (nn.BatchNorm2d(4), r"1 \(BatchNorm2d\)"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"1 \(BatchNorm2d\)"),
        (nn.SyncBatchNorm(4), r"1 \(SyncBatchNorm\)"),
        (nn.InstanceNorm2d(4, track_running_stats=True), r"1 \(InstanceNorm2d\)"),
    ],
)
def test_statistics_of_a_batch_are_refused(norm, layer):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, CLASSES))
    for check in (refuse_mixing, VmappedExamples, GhostExamples):
        with pytest.raises(ValueError, match=f"^{layer} computes with statistics of a batch: .*; use GroupNorm"):
            check(module)


def test_other_layers_are_not_refused():
    for module in (
        CNN().build((1, 28, 28), 10),
        MLP().build((1, 28, 28), 10),
        nn.InstanceNorm2d(4),
        nn.GroupNorm(2, 4),
    ):
        refuse_mixing(module)


def test_lower_precision_is_of_arithmetic_only():
    make = BATCHED["mlp"]
    x, y, mask = batch(torch.float32)
    w = weights(make, torch.float32)
    exact, _ = sums("vmap", make, x, y, mask, 0.5, torch.float32)
    clipped = VmappedExamples(task_of(make, torch.float32).model(3), autocast=True)
    g = torch.zeros_like(w)
    clipped.collect(w, g)
    clipped.step(task_of(make, torch.float32), x, y, mask, 0.5)
    difference = (g - exact).norm() / exact.norm()
    assert 1e-5 < difference < 0.05
    for b in range(B):
        clipped.step(task_of(make, torch.float32), x, y, mask & (torch.arange(B) == b), 0.5)
        assert (g.double().norm(dim=1) <= 0.5).all()
