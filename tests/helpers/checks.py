"""Runs that pass all checks or are refused by one."""

import pytest
import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.flat import FlatSpec
from fedddp.setup.checks import Facts
from fedddp.setup.load import checked
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task

SIZES = torch.tensor([10, 30, 0, 20])
PLACE = Place(world_size=4, local_world_size=4)
MODULE = nn.Linear(40, 40)
TASK = Task(lambda: MODULE, 40)


def secure(**keys):
    return {"privacy": {"secure_aggregation": {"enabled": True, **keys}}}


def private(level, **keys):
    noise = {} if "noise_multiplier" in keys or "target_epsilon" in keys else {"noise_multiplier": 1.0}
    return {"privacy": {"level": level, **noise, **keys}}


def rule(name, **keys):
    return {"aggregation": {"rule": {"name": name, **keys}}}


def attack(name, **keys):
    return {"attack": {"name": name, **keys}}


def checked_run(*layers, place=PLACE, sizes=None, module=MODULE, task=TASK, **facts):
    """The configuration that passed all checks of configuration, data and model."""
    config = resolve(build({"client": {"batch_size": 5}, "run": {"rounds": 3}}, *layers), place)
    if sizes is None:
        sizes = SIZES if config.num_clients == len(SIZES) else torch.full((config.num_clients,), 20)
    return checked(Facts(config, place, task, module, FlatSpec.of(module), sizes, **facts))


def refused(*layers, **facts):
    """The error of a run that is refused: one line that begins with its key."""
    with pytest.raises(UsageError) as caught:
        checked_run(*layers, **facts)
    error = caught.value
    assert str(error).startswith(error.key)
    assert "\n" not in str(error)
    return error


TEN = {"data": {"partition": {"num_clients": 10}}}
CLIENT, EXAMPLE = private("client"), private("example")
PERSONAL = {"evaluate": {"personal_every": 1, "holdout": 0.2}}
INT8 = {"aggregation": {"compression": {"name": "int8"}}}
ADAPTIVE = {"privacy": {"adaptive_clip": {"enabled": True}}}
