"""fedddp.clients.folded.model: what becomes of the module around the layers, and which modules are refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fedddp.clients.folded import FoldedModel, model
from tests.helpers.zoo import Tied, frozen

POOLS = [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=1, padding=1), nn.MaxPool2d(2, ceil_mode=True)]


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_a_streamlined_chain_is_the_same_function(pool, inplace):
    """Also where the largest of a window are several, and where none is positive."""
    x = torch.randint(-2, 3, (6, 2, 7, 7), generator=torch.Generator().manual_seed(0)).double()
    x[0] = -1
    chain = nn.Sequential(nn.Identity(), nn.ReLU(inplace), pool, nn.Flatten())
    quick = model._streamlined(nn.Sequential(nn.Identity(), nn.ReLU(inplace), pool, nn.Flatten()))
    assert [type(part).__name__ for part in quick] == ["Identity", "MaxPool2d", "ReLU", "Flatten"]
    results = []
    for module in (chain, quick):
        own = x.clone().requires_grad_()
        y = module(own * 1)
        dy = torch.arange(1.0, 1 + y.numel(), dtype=torch.float64).view_as(y)
        results.append((y, *torch.autograd.grad(y, own, dy)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_chain_overwrites_what_nobody_else_reads():
    """After a folded layer or pooling; not a sigmoid's output, which its gradient needs."""
    oracle = FoldedModel(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid(), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()))
    assert [part.inplace for part in oracle.module if isinstance(part, nn.ReLU)] == [True, False, True]


def hooked(register):
    def make():
        layer = nn.Linear(4, 4)
        getattr(layer, register)(lambda *_: None)
        return layer

    return make


def with_parameter_hook():
    layer = nn.Linear(4, 4)
    layer.weight.register_hook(lambda g: g * 2)
    return layer


class Own(nn.Linear):
    """Not a plain linear layer."""


REFUSED = {
    "forward hook": hooked("register_forward_hook"),
    "forward pre-hook": hooked("register_forward_pre_hook"),
    "backward hook": hooked("register_full_backward_hook"),
    "backward pre-hook": hooked("register_full_backward_pre_hook"),
    "parameter hook": with_parameter_hook,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "subclass": lambda: Own(4, 4),
    "groups": lambda: nn.Conv2d(4, 4, 1, groups=2),
    "reflecting": lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
    "uneven": lambda: nn.Conv2d(1, 1, 2, padding="same"),
    "norm": lambda: nn.BatchNorm1d(4),
    "tied": Tied,
    "one layer by two names": lambda: Tied(same=True),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_more_than_a_plain_layer_is_refused(kind):
    with pytest.raises(ValueError, match=r"^[\w.]+ is not of one layer alone, of a plain kind that folds$"):
        FoldedModel(nn.ModuleDict({"body": REFUSED[kind](), "head": nn.Linear(3, 3)}))


def test_a_layer_frozen_in_part_is_refused():
    with pytest.raises(ValueError, match=r"1\.bias is not of one layer alone"):
        FoldedModel(frozen())


def test_a_hook_on_a_chain_stays_where_it_is():
    seen, chain = [], nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.MaxPool2d(2))
    chain.register_forward_hook(lambda module, given, y: seen.append(y.shape))
    oracle = FoldedModel(nn.Sequential(chain))
    oracle.load(torch.zeros(20))
    with torch.no_grad():
        oracle.module(torch.zeros(1, 4, 4))
    assert seen == [(1, 2, 2)]
