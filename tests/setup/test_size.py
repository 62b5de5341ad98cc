"""Models larger than the machine's memory are refused before they are made."""

import resource
import time

import pytest
import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data.inputs import Shape
from fedddp.models import GPT, MLP, ImportedModule
from fedddp.setup import size
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve


class Wide(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, width), nn.Linear(width, 10))


class Odd(nn.Linear):
    """Looks at its numbers, which a module that is only laid out does not have."""

    def __init__(self):
        super().__init__(784, 10)
        self.scale = float(self.weight.abs().max())


def prepared(model, folder):
    data = {"name": "synthetic", "args": {"num_train": 40, "num_test": 10}}
    config = build({"data": data, "run": {"dir": str(folder)}, "model": model})
    return prepare(resolve(config, Place()), Place())


def test_a_model_beyond_memory_is_one_line_and_takes_none(tmp_path):
    """10^12 parameters: 16 TB in training."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UsageError, match=r"^model\.name='.*:Wide': has 1,000,796,000,010 para") as told:
        prepared({"name": f"{__name__}:Wide", "width": 10**6}, tmp_path)
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    assert time.process_time() - began < 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", [10**9, 1])
def test_the_keys_of_a_model_of_the_package_are_measured_together(memory, monkeypatch):
    monkeypatch.setattr(size, "memory", lambda: memory)
    large = GPT(width=8192, layers=96, heads=64)
    with pytest.raises(UsageError, match=r"^model: has 77,"):
        size.check_size("model", large, Shape((16,), 100, per_position=True), 100)
    if memory > 1:
        size.check_size("model", MLP(), (1, 28, 28), 10)


def test_what_cannot_be_laid_out_is_left_to_where_it_is_made(monkeypatch):
    monkeypatch.setattr(size, "memory", lambda: 0)
    size.check_size("model", ImportedModule("x:Odd", Odd), (784,), 10)


def test_measuring_draws_nothing(tmp_path):
    before = torch.get_rng_state()
    size.check_size("model", MLP(), (1, 28, 28), 10)
    assert torch.equal(before, torch.get_rng_state())
