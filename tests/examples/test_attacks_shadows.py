"""Shadow models: who is trained on what, and an attack that must succeed on models that remember everything."""

import pytest
import torch

from examples.privacy.attacks import shadows
from examples.privacy.attacks.shadows import Pool
from fedddp.clients import choose
from fedddp.data import Examples
from fedddp.models import MODELS
from fedddp.optim import SGD
from fedddp.tasks import Task
from tests.helpers.support import few_digits
from tests.helpers.zoo import training

MODELS_TRAINED, SIZE = 6, 60


@pytest.fixture(scope="module")
def digits():
    return few_digits(2 * SIZE)


@pytest.fixture(scope="module")
def pool(digits):
    return Pool.of(Examples(digits.train.x[:SIZE], digits.train.y[:SIZE]), MODELS_TRAINED, seed=0)


@pytest.fixture(scope="module")
def study(digits, pool):
    """Confidences [S, n] on the pool and on held-out digits of models that fit their half of the pool."""
    data = pool.clients(digits, torch.device("cpu"), torch.float32)
    task = Task(lambda: MODELS["mlp"](hidden=32).build((1, 28, 28), 10), 10)
    spec = training(SGD(lr=0.1), local_epochs=20, batch_size=5, dtype=torch.float32)
    trainer, _ = choose(task, data, digits.test, spec, width=4)
    w = shadows.trained(trainer, task, MODELS_TRAINED, seed=0)
    held_out = Examples(digits.train.x[SIZE:], digits.train.y[SIZE:])
    return [shadows.confidences(task, w, examples, data.normalize) for examples in (pool.examples, held_out)]


def test_every_example_is_in_half_of_the_models(pool):
    assert pool.members.sum(dim=0).tolist() == [MODELS_TRAINED // 2] * SIZE
    assert len({tuple(row.tolist()) for row in pool.members}) == MODELS_TRAINED
    assert torch.equal(pool.members, Pool.of(pool.examples, MODELS_TRAINED, seed=0).members)
    for models in (2, 5):
        with pytest.raises(ValueError, match="even number"):
            Pool.of(pool.examples, models, seed=0)


def test_a_client_owns_its_models_members(digits, pool):
    data = pool.clients(digits, torch.device("cpu"), torch.float32)
    for model in range(MODELS_TRAINED):
        x, y = data.examples(model)
        assert torch.equal(x, pool.examples.x[pool.members[model]])
        assert torch.equal(y, pool.examples.y[pool.members[model]])


def test_models_know_their_members(study, pool):
    inside, outside = study
    assert (inside[pool.members] > 0).double().mean() == 1.0
    assert (outside > 0).double().mean() < 0.9
    assert len({tuple(row.tolist()) for row in inside}) == MODELS_TRAINED


def test_members_are_found_and_nobody_else(study, pool):
    found = shadows.attack(study[0], pool.members, study[1], targets=4)
    for attack in (found.loss, found.offline, found.online):
        assert attack.low > 0.6
    assert abs(found.control.value - 0.5) < 0.12
    assert found.control.high - found.control.low > 0.1


def test_shuffled_membership_is_not_found(study, pool):
    """Held-out control of LiRA itself: told the wrong halves, it finds nothing."""
    wrong = Pool.of(pool.examples, MODELS_TRAINED, seed=1).members
    found = shadows.attack(study[0], wrong, study[1], targets=4)
    assert found.online.low < 0.5 < found.online.high
