"""examples.privacy.matching: the searches on hand-made recordings, whole and in part."""

import pytest
import torch

from examples.privacy import matching
from examples.privacy.attacks.similarity import psnr
from examples.privacy.matching import MODEL, Matcher, seen_of
from examples.privacy.rows import Recording
from examples.privacy.scenarios import LR
from fedddp.data import DATASETS
from fedddp.models import MODELS
from fedddp.tasks import Task

MEAN, STD = 0.1307, 0.3081
MATCHER = Matcher((1, 28, 28), 10, low=-MEAN / STD, high=(1 - MEAN) / STD, steps=8)


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    """A digit, the update of one step of SGD on it with a tail, the model before, the label."""
    train = DATASETS["mnist-mini"](tmp_path_factory.getbasetemp(), False).train
    task = Task(lambda: MODELS[MODEL]().build((1, 28, 28), 10).double(), 10)
    module, x, y = task.model(0), train.x[:1], train.y[:1]
    loss = task.loss(module((x.double() / 255 - MEAN) / STD), y).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
    return x[0, 0].double() / 255, torch.cat([-LR * gradient, torch.zeros(5)]), task.initial_params(0), int(y)


def recording(digit, begin=0, end=None, scale=None):
    _, handed, before, _ = digit
    handed = handed if scale is None else (handed * scale).to(torch.int64)
    tensors = {"handed": handed, "neighbour": handed[begin:end], "offset": torch.tensor([begin]), "before": before}
    return Recording(tensors, None)


def level(found, digit):
    picture = (found.x[0, 0] * STD + MEAN).clamp(0, 1)
    return float(psnr(picture.unsqueeze(0), digit[0].unsqueeze(0)))


def seen(recorded, key):
    return seen_of(recorded, key, MODELS[MODEL]().build((1, 28, 28), 10).double())


def test_what_was_handed_out_is_the_gradient_behind_it(digit):
    whole = seen(recording(digit), "handed")
    assert (whole.part.start, whole.part.stop) == (0, 7850)
    assert torch.allclose(whole.gradient, digit[1][:7850] / -LR, atol=1e-15)
    part = seen(recording(digit, 3000, 5500), "neighbour")
    assert (part.part.start, part.part.stop) == (3000, 5500)
    assert torch.equal(part.gradient[3000:5500], whole.gradient[3000:5500])
    assert not part.gradient[:3000].any()
    behind = seen(recording(digit, 7000, 9000), "neighbour")  # the tail is no gradient
    assert (behind.part.start, behind.part.stop) == (7000, 7850)
    ring = seen(recording(digit, scale=2**40), "handed")
    assert torch.allclose(ring.gradient, -digit[1][:7850] / digit[1].norm(), atol=1e-9)  # no scale is known


@pytest.mark.parametrize("way", ["iDLG", "cosine + TV"])
def test_a_digit_is_found_in_a_whole_update(digit, way):
    found = matching.WAYS[way][2](MATCHER, seen(recording(digit), "handed"))
    assert level(found, digit) > 20
    assert found.y.tolist() == [digit[3]]


def test_a_digit_is_found_in_a_third_of_its_update_and_not_in_noise(digit):
    third = recording(digit, 2618, 5236)
    found = matching.WAYS["cosine + TV on a third"][2](MATCHER, seen(third, "neighbour"))
    assert level(found, digit) > 15
    noise = Recording({**third.tensors, "handed": torch.randn(7855, generator=torch.Generator().manual_seed(0))}, None)
    assert level(MATCHER.cosine(seen(noise, "handed")), digit) < 13.4
