"""How much a client does in a round, and at which learning rate."""

import math
from dataclasses import dataclass

import pytest
import torch

from fedddp.comm.world import Place
from fedddp.config import UsageError, build, to_toml
from fedddp.data import Work, num_steps, plan
from fedddp.flat import FlatSpec
from fedddp.optim import CONSTANT, SCHEDULES, SGD
from fedddp.setup.checks import Facts
from fedddp.setup.load import checked
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task
from tests.helpers.support import assemble, few_digits

SIZES = torch.tensor([7, 0, 20, 3])
IDS = [4, 9, 2, 0]


def planned(steps, seed=0):
    return plan(SIZES.tolist(), IDS, 3, steps=torch.tensor(steps), batch_size=3, seed=seed)


def test_fewer_steps_are_the_first_of_more():
    """7 examples in batches of 3 are 3 steps a pass, 20 are 7, 3 are 1."""
    whole, part = planned([6, 0, 14, 2]), planned([4, 0, 8, 1])
    epochs = plan(SIZES.tolist(), IDS, 3, epochs=2, batch_size=3, seed=0)
    assert torch.equal(whole.index, epochs.index)
    assert torch.equal(whole.mask, epochs.mask)
    assert torch.equal(whole.steps, epochs.steps)
    for row, steps in enumerate(part.steps.tolist()):
        assert torch.equal(part.index[row, :steps], epochs.index[row, :steps])
        assert torch.equal(part.mask[row, :steps], epochs.mask[row, :steps])
        assert not part.mask[row, steps:].any()
        assert not part.index[row, steps:].any()


def test_local_steps_are_as_many_for_everybody_with_examples():
    work = Work(steps=5, batch_size=3)
    assert work.most(SIZES).tolist() == work.drawn(SIZES, IDS, 0, 0).tolist() == [5, 0, 5, 5]
    assert Work(epochs=2, batch_size=3).most(SIZES).tolist() == num_steps(SIZES, 2, 3).tolist() == [6, 0, 14, 2]
    assert Work(epochs=2, batch_size=0).most(SIZES).tolist() == [2, 0, 2, 2]


@pytest.mark.parametrize(("work", "amount"), [(Work(epochs=4), 4), (Work(steps=4), 4)])
def test_stragglers_do_uniformly_less_and_the_others_all(work, amount):
    """Of 1,000 clients a quarter does all, the rest each number as likely; within 4 standard deviations."""
    n, share = 1000, 0.75
    some = Work(work.epochs, work.steps, 10, share)
    done = some.drawn(torch.full((n,), 10), range(n), 1, 0)  # one step an epoch
    counts = torch.bincount(done, minlength=amount + 1).tolist()
    expected = [0, *[share / amount * n] * (amount - 1), (share / amount + 1 - share) * n]
    assert counts[0] == 0
    for count, mean in zip(counts[1:], expected[1:], strict=True):
        assert abs(count - mean) < 4 * math.sqrt(mean)
    assert torch.equal(some.drawn(torch.tensor([10, 10]), [17, 3], 1, 0), done[[17, 3]])  # whoever is beside it
    assert not torch.equal(some.drawn(torch.full((n,), 10), range(n), 2, 0), done)


def test_every_trainer_takes_the_steps_and_says_how_many(tmp_path):
    client = {"local_epochs": 3, "stragglers": 0.9, "batch_size": 4, "precision": "float64"}
    client["schedule"] = {"name": "exponential", "gamma": 0.5}
    both = []
    for name in ("sequential", "vectorized"):
        sections = {"client": {**client, "execution": {"name": name, "width": 3}}}
        f, server = assemble(
            tmp_path / name, few_digits(24), (4, 8, 12), model={"name": "mlp", "hidden": 4}, **sections
        )
        ids = [(0, 1, 2)] if name == "vectorized" else [(0,), (1,), (2,)]
        results = [f.trainer.on(k, 2).train(server.w) for k in ids]
        both.append([torch.cat([getattr(r, key) for r in results]) for key in ("delta", "steps", "loss")])
        again = f.trainer.on(ids[0], 2).train(server.w, epochs=1)
        assert again.steps.tolist() == [1, 2, 3][: len(ids[0])]
    (delta, steps, loss), (same, _, _) = both
    assert (
        steps.tolist()
        == both[1][1].tolist()
        == Work(3, None, 4, 0.9).drawn(f.trainer.data.sizes, range(3), 2, 0).tolist()
    )
    assert steps.tolist() != [3, 6, 9]
    assert (delta - same).abs().max() <= 1e-12
    assert torch.allclose(loss, both[1][2])
    assert f.trainer.on((0,), 2).optimizer == SGD(lr=0.1 * 0.25)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup": 3}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ({"name": "step", "gamma": 0.1, "every": 2}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "exponential", "gamma": 0.5, "warmup": 2}, [1 / 3, 2 / 3, 1, 0.5, 0.25, 0.125]),
        ({"name": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"name": "linear", "rounds": 4, "floor": 0.2}, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (
            {"name": "cosine", "warmup": 2, "floor": 0.5},
            [1 / 3, 2 / 3, 1] + [0.75 + math.cos(k * math.pi / 4) / 4 for k in (1, 2, 3)],
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_the_factor_of_every_round(table, expected):
    schedule = resolved(schedule=table).client.schedule
    assert [schedule.factor(t) for t in range(6)] == pytest.approx(expected, abs=1e-15)
    assert set(SCHEDULES) == {"constant", "step", "exponential", "linear", "cosine"}


def resolved(rounds=6, privacy=None, **client):
    sections = {"run": {"rounds": rounds}, "client": {"batch_size": 5, **client}, "privacy": privacy or {}}
    return resolve(build(sections), Place())


def test_a_schedule_keeps_the_rounds_it_was_made_for():
    """In the configuration of a run: with more rounds, it would not be the same run gone on with."""
    assert resolved(schedule={"name": "cosine"}).client.schedule.rounds == 6
    assert 'name = "cosine"\nwarmup = 0\nunit = "rounds"\nrounds = 6' in to_toml(resolved(schedule={"name": "cosine"}))
    by_step = resolved(schedule={"name": "cosine", "unit": "steps"}, local_steps=50).client.schedule
    assert by_step.rounds == 300
    assert resolved().client.schedule == CONSTANT


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"local_steps": 5, "local_epochs": 2}, "client.local_steps=5: local_epochs and local_steps both set"),
        ({"stragglers": 0.5}, "client.stragglers=0.5: a straggler cannot train less than one epoch or step"),
        ({"stragglers": 1.5, "local_epochs": 2}, "client.stragglers=1.5: should be less than or equal to 1"),
        ({"local_steps": 0}, "client.local_steps=0: should be greater than or equal to 1"),
        ({"schedule": {"name": "cosine", "rounds": 3}}, "client.schedule: rounds=3: the rate is 0 after them"),
        ({"schedule": {"name": "cosin"}}, "client.schedule.name='cosin': should be 'constant'"),
        (
            {"schedule": {"name": "step"}, "optimizer": {"name": "tests.data.test_work:WithoutRate"}},
            "WithoutRate has no lr",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_what_makes_no_sense_is_refused(client, words):
    with pytest.raises(UsageError) as error:
        resolved(**client)
    assert words in str(error.value)


@pytest.mark.parametrize("client", [{"local_steps": 5}, {"local_epochs": 3, "stragglers": 0.5}])
def test_work_that_is_not_accounted_for_is_refused_under_dp_sgd_only(client):
    config = resolved(privacy={"level": "example", "noise_multiplier": 1.0}, **client)
    with pytest.raises(UsageError) as refused:
        checked(facts(config))
    assert refused.value.code.startswith("example-level-")
    checked(facts(resolved(**client)))


def facts(config):
    module = torch.nn.Linear(2, 2)
    return Facts(config, Place(), Task(torch.nn.Linear, 2), module, FlatSpec.of(module), SIZES)


@dataclass(frozen=True)
class WithoutRate:
    speed: float = 1.0

    def gradient_weight(self, steps): ...

    def init(self, params): ...

    def step_(self, params, grads, state): ...
