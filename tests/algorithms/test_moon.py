"""MOON: the contrastive loss, its gradient in a local step, what a client remembers, what it reduces to."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fedddp.algorithms import Moon
from fedddp.federation import federate
from fedddp.flat import FlatSpec
from fedddp.types import Contrast, ServerState
from tests.helpers.support import assemble, flat
from tests.helpers.zoo import BATCHED, SIZES, dataset, images, normed, start_of, task_of, trainers

MLP = BATCHED["mlp"]


def features(module, w, x):
    """The input of the MLP's last layer, written out."""
    views, x = list(FlatSpec.of(module).views(w).values()), x.flatten(1)
    for weight, bias in zip(views[:-2:2], views[1:-2:2], strict=True):
        x = torch.relu(F.linear(x, weight, bias))
    return x


def test_one_step_descends_on_the_papers_loss():
    """Client 2's whole data as one batch; the loss as exponentials of cosines, its gradient by autograd."""
    one, _, _ = trainers(MLP, batch_size=0, local_epochs=1)
    w = start_of(MLP)
    previous = w + 0.1 * torch.randn(len(w), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    algorithm, server = Moon(mu=2.0, temperature=0.3), ServerState(w, flat(len(w)))
    update, after, result = algorithm.client_update(server, {"previous": previous[None]}, one.on((2,), 0))
    x, y = images().x[23 : 23 + 9], images().y[23 : 23 + 9]
    module, at = MLP().double(), w.clone().requires_grad_()
    z, z_glob, z_prev = features(module, at, x), features(module, w, x), features(module, previous, x)
    near, far = (torch.exp(F.cosine_similarity(z, other, dim=1) / 0.3) for other in (z_glob, z_prev))
    outputs = functional_call(module, FlatSpec.of(module).views(at), (x,))
    target = (F.cross_entropy(outputs, y, reduction="none") - 2.0 * torch.log(near / (near + far))).mean()
    (gradient,) = torch.autograd.grad(target, at)
    assert (update.vectors["delta"][0] + 0.1 * gradient).abs().max() <= 1e-12
    assert torch.equal(after["previous"], result.w)
    plain = one.on((2,), 0).train(w)
    assert (update.vectors["delta"] - plain.delta).abs().max() > 1e-4
    assert torch.equal(result.loss, plain.loss)  # of the task alone


def test_without_its_loss_it_is_fedavg(tmp_path):
    ends = []
    for algorithm in ({"name": "moon", "mu": 0.0}, {"name": "fedavg"}):
        sections = {"algorithm": algorithm, "client": {"precision": "float64"}, "run": {"rounds": 2}}
        f, server = assemble(tmp_path, dataset(), SIZES, task=task_of(MLP), **sections)
        ends.append(federate(f, server).w)
    assert torch.equal(*ends)


def test_models_that_agree_pull_nowhere_in_the_first_step():
    """z_glob = z_prev = z: both cosines are at their largest, so the contrastive loss has no gradient."""
    one, _, _ = trainers(MLP, batch_size=0, local_epochs=1)
    w = start_of(MLP)
    update, _, _ = Moon(mu=5.0).client_update(ServerState(w, flat(len(w))), {"previous": w[None]}, one.on((0,), 0))
    assert (update.vectors["delta"] - one.on((0,), 0).train(w).delta).abs().max() <= 1e-12


@pytest.mark.parametrize("make", [MLP, BATCHED["cnn"], normed], ids=["mlp", "cnn", "group norm"])
def test_clients_of_a_block_are_compared_with_their_own_models(make):
    one, many, _ = trainers(make, width=10)
    w = start_of(make)
    previous = w * torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(-1, 1)
    algorithm, server = Moon(), ServerState(w, flat(len(w)))
    update, after, result = algorithm.client_update(server, {"previous": previous}, many.on(range(6), 1))
    for k in range(6):
        alone, own, _ = algorithm.client_update(server, {"previous": previous[[k]]}, one.on((k,), 1))
        # not bit for bit: a row of a block lies at another address, and some CPUs' products depend on the alignment
        assert torch.allclose(update.vectors["delta"][[k]], alone.vectors["delta"], rtol=0, atol=1e-12)
        assert torch.allclose(after["previous"][[k]], own["previous"], rtol=0, atol=1e-12)
    assert result.steps.tolist() == [10, 0, 4, 4, 2, 2]


def test_a_model_without_a_linear_layer_is_refused_by_reason():
    make = lambda: nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten())  # noqa: E731
    one, _, _ = trainers(make)
    w = start_of(make)
    contrast = Contrast(torch.stack([w, w])[:, None], lambda z, others: z.sum(dim=1))
    with pytest.raises(ValueError, match="no linear layer whose input could be compared"):
        one.on((0,), 0).train(w, contrast=contrast)


def test_the_hook_is_gone_after_training():
    one, _, _ = trainers(MLP)
    w = start_of(MLP)
    Moon().client_update(ServerState(w, flat(len(w))), {"previous": w[None]}, one.on((2,), 0))
    assert not any(part._forward_pre_hooks for part in one._flat.module.modules())
    assert one._flat.module.training
