"""fedddp.flat: a module as one vector, and back."""

import copy

import pytest
import torch
from torch import nn

from fedddp.flat import FlatModule, FlatSpec, constants, flatten, freeze, settle
from fedddp.optim import SGD


class Mixed(nn.Module):
    """Registers what trains last, so that the layout cannot come out right by accident."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("level", torch.tensor(5.0))
        self.frozen = nn.Parameter(torch.tensor([7.0, 8.0]), requires_grad=False)
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.scale = nn.Parameter(torch.tensor(9.0))


def batch_norm_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_layout_is_trainable_then_float_buffers():
    spec = FlatSpec.of(Mixed())
    assert spec == FlatSpec(("weight", "scale", "level"), ((2, 3), (), ()), 7, 8, torch.float32)
    assert flatten(Mixed()).tolist() == [0, 1, 2, 3, 4, 5, 9, 5]


def with_frozen_backbone():
    module = nn.Sequential(batch_norm_net(), nn.Dropout(0.5), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    return module


def test_a_frozen_part_is_not_in_the_vector_and_neither_are_its_statistics():
    assert FlatSpec.of(with_frozen_backbone()).names == ("2.weight", "2.bias")


def test_a_frozen_part_stays_in_evaluation_mode():
    module = copy.deepcopy(settle(with_frozen_backbone())).train()
    assert [part.training for part in module] == [False, True, True]
    assert not any(part.training for part in module[0])
    before = module[0][1].running_mean.clone()
    module(torch.ones(4, 4))
    assert torch.equal(module[0][1].running_mean, before)


def test_constants_are_what_neither_trains_nor_changes():
    assert list(constants(Mixed())) == ["frozen"]
    assert all(name.startswith("0.") for name in constants(with_frozen_backbone()))
    assert constants(batch_norm_net()) == {}


def test_the_digest_of_constants_depends_on_their_values_alone():
    first, second = Mixed(), Mixed()
    second.weight.data.add_(1)
    second.seen.add_(1)
    assert FlatSpec.of(first, whole=True).constants == FlatSpec.of(second, whole=True).constants != ""
    second.frozen.data.add_(1)
    assert FlatSpec.of(first, whole=True).constants != FlatSpec.of(second, whole=True).constants


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (["3.*"], ["3.weight", "3.bias"]),
        (["@Linear"], ["0.weight", "0.bias", "3.weight", "3.bias"]),
        (["@BatchNorm*", "0.bias"], ["0.bias", "1.weight", "1.bias"]),
    ],
)
def test_freeze_leaves_trainable_what_matches(patterns, trained):
    module = freeze(batch_norm_net(), patterns)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == trained


def test_freeze_does_not_train_what_the_model_has_frozen():
    assert not freeze(Mixed(), ["*"]).frozen.requires_grad


def test_a_pattern_without_a_match_is_an_error():
    with pytest.raises(ValueError, match=r"'heads' matches no parameter; there are 0.weight, 0.bias, 1.weight"):
        freeze(batch_norm_net(), ["0.*", "heads"])


def test_flatten_is_a_copy():
    module = Mixed()
    flatten(module).zero_()
    assert module.scale.item() == 9


def test_views_have_the_layers_shapes_and_alias_the_vector():
    spec, w = FlatSpec.of(Mixed()), torch.zeros(8)
    views = spec.views(w)
    assert {name: tuple(view.shape) for name, view in views.items()} == dict(zip(spec.names, spec.shapes, strict=True))
    views["scale"].fill_(2)
    views["weight"][1, 0] = 4
    assert w.tolist() == [0, 0, 0, 4, 0, 0, 2, 0]


def test_views_of_several_clients_keep_the_client_axis():
    spec, w = FlatSpec.of(Mixed()), torch.arange(16.0).view(2, 8)
    views = spec.views(w)
    assert views["weight"].shape == (2, 2, 3)
    assert views["scale"].tolist() == [6, 14]
    views["level"].zero_()
    assert w[:, 7].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], []),
        (["scale"], [6]),
        (["weight", "le*"], [0, 1, 2, 3, 4, 5, 7]),
        (["*e*"], [0, 1, 2, 3, 4, 5, 6, 7]),
        (["Weight"], []),
    ],
)
def test_mask_selects_by_name_pattern(patterns, expected):
    mask = FlatSpec.of(Mixed()).mask(patterns)
    assert mask.dtype == torch.bool
    assert mask.nonzero().flatten().tolist() == expected


def test_module_and_vector_share_memory():
    flat = FlatModule(Mixed())
    flat.w[3] = 30
    assert flat.module.weight[1, 0].item() == 30
    with torch.no_grad():
        flat.module.level.mul_(2)
    assert flat.w[7:].tolist() == [10]
    assert [tuple(p.shape) for p in flat.params] == [(2, 3), ()]


def test_load_copies_in_and_resets_buffers_outside_the_vector():
    flat, w = FlatModule(Mixed()), torch.arange(10.0, 18.0)
    flat.module.seen.add_(5)
    flat.load(w)
    assert flat.module.seen.item() == 3
    assert flat.module.level.item() == 17
    flat.w.zero_()
    assert w[0].item() == 10


def test_no_trainable_parameter_is_an_error():
    for module in (nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match="has no trainable parameter"):
            FlatSpec.of(module)


def test_frozen_parameters_may_have_another_dtype():
    module = nn.Sequential(nn.Linear(2, 2).bfloat16().requires_grad_(False), nn.Linear(2, 2))
    assert FlatSpec.of(module).dtype == torch.float32


def test_mixed_dtypes_are_an_error():
    with pytest.raises(ValueError, match=r"Sequential mixes \['torch.float32', 'torch.float64'\]"):
        FlatSpec.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


def test_tied_parameters_lie_in_the_vector_once():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    flat = FlatModule(module)
    assert flat.spec.names == ("0.weight",)
    assert flat.spec.dim == 9
    flat.w.fill_(1)
    assert module(torch.ones(1, 3)).tolist() == [[9, 9, 9]]


def test_batch_norm_trains_through_the_views():
    """The same bits as an ordinary module with torch's optimizer: statistics, affine parameters and all."""
    plain, flat = batch_norm_net(), FlatModule(batch_norm_net())
    optimizer, ours, state = torch.optim.SGD(plain.parameters(), lr=0.1), SGD(lr=0.1), {}
    trainable = flat.w[: flat.spec.num_trainable]
    stream = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(8, 4, generator=stream)
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
        grads = torch.autograd.grad(flat.module(x).square().mean(), flat.params)
        with torch.no_grad():
            ours.step_([trainable], [torch.cat([g.reshape(-1) for g in grads])], state)
    assert plain[1].running_mean.abs().sum() > 0
    assert torch.equal(flat.w, flatten(plain))
    assert flat.module[1].num_batches_tracked.item() == 3
    flat.load(flat.w.clone())
    assert flat.module[1].num_batches_tracked.item() == 0
