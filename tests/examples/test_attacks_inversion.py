"""Analytic inversion of updates that the program's own training made."""

import pytest
import torch

from examples.privacy.attacks.inversion import FirstLayer, candidates, label, one_example
from examples.privacy.attacks.similarity import closest, psnr
from fedddp.flat import FlatSpec
from fedddp.models import MODELS
from fedddp.tasks import Task
from tests.helpers.support import assemble, few_digits

LOW, HIGH = -0.1307 / 0.3081, (1 - 0.1307) / 0.3081
SPEC = FlatSpec.of(MODELS["mlp"]().build((1, 28, 28), 10))


def picture(x):
    return (x * 0.3081 + 0.1307).clamp(0, 1).unflatten(-1, (28, 28))


@pytest.fixture(scope="module")
def update(tmp_path_factory):
    """update(sizes): what clients of these many digits send after one step, [K, D], and their digits."""

    def made(*sizes):
        dataset = few_digits(sum(sizes))
        client = {"batch_size": 0, "optimizer": {"lr": 0.1}, "execution": {"name": "sequential"}}
        folder = tmp_path_factory.mktemp("run")
        federation, server = assemble(folder, dataset, list(sizes), client=client, model={"name": "mlp"})
        deltas = [federation.trainer.on((k,), 0).train(server.w).delta for k in range(len(sizes))]
        return torch.cat(deltas), dataset.train.x[:, 0].double() / 255

    return made


def test_one_update_of_one_example_is_the_example(update):
    (delta,), digits = update(1)
    assert psnr(picture(one_example(FirstLayer.of(SPEC, delta), LOW)), digits[0]) > 100


@pytest.mark.parametrize("chunk", [slice(0, 66_409), slice(66_409, 132_818), slice(132_818, 199_226)])
def test_a_third_of_it_is_enough(update, chunk):
    """Rows without their biases (the first two thirds), rows and biases (the last)."""
    (delta,), digits = update(1)
    layer = FirstLayer.of_chunk(SPEC, delta[chunk], chunk.start)
    assert layer.bias.isnan().all() == (chunk.stop < 156_800)
    assert psnr(picture(one_example(layer, LOW)), digits[0]) > 60


def test_integers_of_a_ring_are_as_good(update):
    """Fixed point is no protection: the ratio does not know the scale."""
    (delta,), digits = update(1)
    ring = (delta.double() * 2**40).to(torch.int64)
    assert psnr(picture(one_example(FirstLayer.of(SPEC, ring), LOW)), digits[0]) > 100


def test_nothing_is_known_from_later_layers():
    layer = FirstLayer.of_chunk(SPEC, torch.randn(2000), 157_100)
    assert one_example(layer, LOW).isnan().all()
    assert candidates(layer, LOW, HIGH).shape == (0, 784)


def test_noise_is_averaged_over_units():
    """The error of least squares is that of the noise over the norm of the biases: sigma / |b|."""
    stream = torch.Generator().manual_seed(0)
    x, bias = torch.rand(784, generator=stream, dtype=torch.float64), torch.rand(200, generator=stream).double()
    noise = 0.05 * torch.randn(200, 784, generator=stream, dtype=torch.float64)
    error = one_example(FirstLayer(bias.outer(x) + noise, bias), LOW) - x
    assert error.std() == pytest.approx(0.05 / float(bias.norm()), rel=0.1)


def test_the_sum_of_several_clients_gives_single_examples(update):
    deltas, digits = update(4, 4, 4)
    found = picture(candidates(FirstLayer.of(SPEC, deltas.sum(dim=0)), LOW, HIGH))
    level = closest(found, digits).psnr
    assert (level > 60).sum() >= 3
    strangers = few_digits(24).train.x[12:, 0].double() / 255
    assert closest(found, strangers).psnr.max() < 25


def test_the_plausible_come_first():
    """Unit 0 mixes two examples, unit 1 is their difference and leaves the range, units 2 and 3 hold one each."""
    first, second = torch.full((2, 784), LOW, dtype=torch.float64)
    first[:200], second[300:500] = HIGH, HIGH
    weights = torch.tensor([[1.0, 1.0], [2.0, -1.0], [0.5, 0.0], [0.0, -0.3], [0.0, 0.0]], dtype=torch.float64)
    layer = FirstLayer(weights @ torch.stack([first, second]), weights.sum(dim=1))
    found = candidates(layer, LOW, HIGH)
    assert len(found) == 4  # the unit that is active for none has no ratio
    singles = torch.stack([first, second])
    assert torch.allclose(found[:2], singles)
    assert torch.allclose(found[2], singles.mean(dim=0))
    assert len(candidates(layer, LOW, HIGH, most=1)) == 1


def test_the_label_is_read_off_the_last_bias():
    task = Task(lambda: MODELS["mlp"]().build((1, 28, 28), 10), 10)
    module = task.model(0)
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for y in range(10):
        loss = task.loss(module(x), torch.tensor([y])).mean()
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
        assert label(SPEC, gradient) == y


def test_a_model_that_begins_otherwise_is_refused():
    cnn = FlatSpec.of(MODELS["cnn"]().build((1, 28, 28), 10))
    with pytest.raises(ValueError, match="fully connected"):
        FirstLayer.of(cnn, torch.zeros(cnn.dim))
    without = FlatSpec.of(torch.nn.Linear(4, 3, bias=False))
    with pytest.raises(ValueError, match="bias"):
        label(without, torch.zeros(12))
