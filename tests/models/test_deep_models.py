"""fedddp.models, the deep ones: sizes, norms, first values, and training one by one or at once."""

import re

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, VectorizedTrainer
from fedddp.config import UsageError, build
from fedddp.flat import FlatModule, FlatSpec
from fedddp.models import VGG, LeNet, ResNet
from fedddp.models.convolutional import group_norm
from tests.helpers.zoo import start_of, task_of, trainers

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
FOLDED = "layers folded over clients"
SMALL = {
    "vgg": (VGG(width=0.05), FOLDED),
    "vgg, group norm": (VGG(width=0.05, norm="group"), FOLDED),
    "resnet": (ResNet(depth=8, width=0.25), FOLDED),
}


@pytest.mark.parametrize("model", sorted(SMALL))
def test_clients_trained_at_once_end_where_they_end_one_by_one(model):
    maker, how = SMALL[model]
    make = lambda: maker.build((1, 8, 8), 5)  # noqa: E731
    sequential, batched, why = trainers(make, width=6, local_epochs=1)
    assert why == f"vectorized: 6 clients at once, {how}"
    start = start_of(make)
    both = batched.on(range(6), 0).train(start).delta
    one_by_one = torch.cat([sequential.on((k,), 0).train(start).delta for k in range(6)])
    assert torch.allclose(both, one_by_one, rtol=1e-9, atol=1e-11)
    assert one_by_one[0].abs().max() > 1e-4


@pytest.mark.parametrize("maker", [VGG(width=0.05, norm="batch"), ResNet(depth=8, width=0.25, norm="batch")])
def test_batch_norm_is_trained_one_by_one_since_clients_would_share_its_statistics(maker):
    _, trainer, why = trainers(lambda: maker.build((1, 8, 8), 5))
    assert type(trainer) is SequentialTrainer
    assert "1.running_mean is a buffer, which batched clients would have in common" in why


def test_lenet_is_folded():
    _, trainer, why = trainers(lambda: nn.Sequential(nn.Upsample(scale_factor=2), *LeNet().build((1, 16, 16), 5)))
    assert type(trainer) is VectorizedTrainer
    assert why.endswith(FOLDED)


def test_the_published_vgg_and_resnets_by_their_layers():
    """Convolutions and linear layers as the names count them; 1x1 shortcuts are not counted."""
    for maker in (VGG(), VGG(depth=16), ResNet(), ResNet(depth=18), ResNet(depth=34), ResNet(depth=56)):
        layers = [m for m in maker.build(COLOUR, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        counted = [m for m in layers if not isinstance(m, nn.Conv2d) or m.kernel_size == (3, 3)]
        assert len(counted) == maker.depth


def test_vgg_ends_at_one_position_of_28_and_of_32_pixels():
    for shape in (GREY, COLOUR):
        module = VGG(width=0.05).build(shape, 10)
        last_pool = max(i for i, layer in enumerate(module) if isinstance(layer, nn.MaxPool2d))
        assert module[: last_pool + 1](torch.zeros(1, *shape)).shape[2:] == (1, 1)


def test_group_norm_and_batch_norm_have_as_many_parameters_and_statistics_are_part_of_the_vector():
    group, batch = (FlatSpec.of(ResNet(depth=8, norm=norm).build(GREY, 10)) for norm in ("group", "batch"))
    assert group.num_trainable == batch.num_trainable == group.dim
    channels = sum(c for c in (16, *(2 * [16]), *(3 * [32]), *(3 * [64])))  # of the norms, shortcuts' included
    assert batch.dim == batch.num_trainable + 2 * channels


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (64, 4), (512, 32), (24, 1), (40, 2), (1, 1), (50, 2)])
def test_groups_have_16_channels_or_somewhat_more(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert channels % groups == 0


def test_a_residual_block_adds_to_what_it_gets():
    """With 0 for the weight of its last norm it passes on what is positive, and has something to add from the start."""
    block = ResNet(depth=20).build(GREY, 10)[4]
    x = torch.rand(2, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    assert (block(x) - x).std() > 0.1
    torch.nn.init.zeros_(block.convolutions[-1].weight)
    assert torch.equal(block(x), x)


def test_first_activations_neither_vanish_nor_explode():
    x = torch.randn(64, *GREY, generator=torch.Generator().manual_seed(0))
    for maker in (VGG(depth=19, width=0.25), VGG(depth=19, width=0.25, norm="group"), ResNet(depth=56)):
        task = task_of(lambda maker=maker: maker.build(GREY, 10), torch.float32)
        hidden = task.model(0)[:-1](x)
        assert 0.1 < hidden.std() < 10


def test_statistics_return_with_the_vector():
    flat = FlatModule(ResNet(depth=8, width=0.25, norm="batch").build(GREY, 10))
    before = flat.w.clone()
    flat.module.train()(torch.randn(4, *GREY, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(flat.w, before)  # running means are views into it
    flat.load(before)
    assert torch.equal(flat.w, before)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "vgg", "depth": 12}, "model.depth"),
        ({"name": "vgg", "width": 0}, "model.width"),
        ({"name": "resnet", "norm": "none"}, "model.norm"),
        ({"name": "resnet", "depth": 50}, "model.depth"),
    ],
)
def test_what_there_is_not_is_refused_by_key(section, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}="):
        build({"model": section})


def test_lenet_refuses_images_without_room_for_its_filters():
    with pytest.raises(
        ValueError, match=r"^model\.name=lenet needs images of 16x16 pixels or more, these are 1[0-5]x28$"
    ):
        LeNet().build((1, 15, 28), 10)
