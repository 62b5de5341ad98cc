"""fedddp.setup.noise and remarks: what a private run fills in, and what it logs about itself."""

import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import build
from fedddp.flat import FlatSpec
from fedddp.setup.checks import Facts
from fedddp.setup.experiment import caveat, start_messages
from fedddp.setup.load import checked
from fedddp.setup.noise import example_level_work, heaviest, with_noise
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task

SIZES = torch.tensor([10, 30, 0, 20])
PLACE = Place(world_size=4, local_world_size=4)


def resolved(*layers, **privacy):
    return resolve(build({"privacy": privacy, "client": {"batch_size": 5}, "run": {"rounds": 3}}, *layers), PLACE)


def messages(*layers, **privacy):
    module = nn.Linear(2, 2)
    config = resolved(*layers, **privacy)
    return list(start_messages(checked(Facts(config, PLACE, Task(nn.Linear, 2), module, FlatSpec.of(module), SIZES))))


def test_what_is_given_stays_as_it_is():
    config = resolved()
    assert with_noise(config, SIZES) is config
    assert with_noise(resolved(level="client", noise_multiplier=1.5), SIZES).noise_multiplier == 1.5


def test_the_heaviest_cohort_is_that_of_the_largest_clients():
    assert heaviest(SIZES, 2) == 50
    assert heaviest(SIZES, 9) == 61  # the client without examples weighs no more than 1


def test_example_level_work_is_a_rate_and_a_number_of_steps_for_each_client():
    rate, steps = example_level_work(resolved(), SIZES)
    assert rate.tolist() == [0.5, 1 / 6, 1.0, 0.25]
    assert steps.tolist() == [2, 6, 0, 4]


def test_a_run_logs_its_privacy_and_a_seeded_one_that_it_guarantees_nothing():
    masked = {"enabled": True}
    lines = messages(level="client", noise_multiplier=1.0, randomness="seeded", secure_aggregation=masked)
    assert lines[0].startswith("simulation: every rank can read all of mnist-mini")
    assert "nobody is authenticated" in lines[1]
    assert "client level" in lines[2]
    assert "guarantees nothing" in lines[2]
    assert len(lines) == 3
    assert "without secure aggregation" in messages(level="client", noise_multiplier=1.0)[-1]
    assert caveat(resolved()) == ""


def test_a_run_logs_its_byzantine_clients():
    def of(**attack):
        return [line for line in messages({"attack": attack}) if line.startswith("attack")]

    assert of(name="none") == []
    (line,) = of(name="sign_flip", num_clients=2)
    assert line.startswith("attack sign_flip: 2 Byzantine clients: ")
    assert of(name="backdoor", num_clients=0) == ["attack backdoor: 0 Byzantine clients"]
