"""Where torch has no batching rule, batched and sequential clients are timed at start, and the faster is taken."""

import re
import warnings
from importlib import import_module

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, VectorizedTrainer
from tests.helpers.zoo import CLASSES, Scaled, trainers

TIMED = import_module("fedddp.clients.choose")
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="LSTM has a batching rule without")


class Recurrent(nn.Module):
    """In float32 on a CPU, torch's LSTM is one operation that `vmap` does client by client; two ways do not fold."""

    def __init__(self, cell=nn.LSTM, **how):
        super().__init__()
        self.cell, self.head = cell(8, 4, batch_first=True, bidirectional=True, **how), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.cell(x.squeeze(1))[0][:, -1])


class Warned(Recurrent):
    def forward(self, x):
        warnings.warn("of the user's own", stacklevel=1)
        return super().forward(x)


def clock(monkeypatch, together, single):
    """Let a step of batched clients, and of sequential ones, take so many seconds."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    fake = Clock()
    monkeypatch.setattr(TIMED, "time", fake)
    for cls, seconds in ((VectorizedTrainer, together), (SequentialTrainer, single)):

        def train(self, *args, cls=cls, seconds=seconds, before=cls.train):
            fake.now += seconds
            return before(self, *args)

        monkeypatch.setattr(cls, "train", train)


@pytest.fixture
def silent():
    """No warning may be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@needs_mkldnn
@pytest.mark.parametrize("how", [{}, {"num_layers": 2}])
def test_the_slower_way_is_left_and_by_how_much_is_told(monkeypatch, silent, how):
    clock(monkeypatch, together=10.0, single=1.0)  # four clients a step
    _, trainer, why = trainers(lambda: Recurrent(**how), name="auto", dtype=torch.float32)
    assert isinstance(trainer, SequentialTrainer)
    assert re.search(r"vmap takes 2\.5 times as long .*no batching rule", why)


@needs_mkldnn
def test_batching_is_kept_where_it_is_faster(monkeypatch, silent):
    clock(monkeypatch, together=2.0, single=1.0)
    _, trainer, why = trainers(Recurrent, name="auto", dtype=torch.float32)
    assert isinstance(trainer, VectorizedTrainer)
    assert "2.0 times as fast as sequential" in why
    start = trainer._task.initial_params(3)
    trainer.on((0, 2), 0).train(start)  # torch warns in every step


@needs_mkldnn
def test_clients_one_at_a_time_are_not_timed(monkeypatch, silent):
    """As with aggregation.sum=exact, whose bits do not depend on the load of a machine."""
    clock(monkeypatch, together=0.1, single=1.0)
    _, trainer, why = trainers(Recurrent, name="auto", width=1, dtype=torch.float32)
    assert isinstance(trainer, SequentialTrainer)
    assert "no batching rule" in why


@needs_mkldnn
def test_what_is_configured_is_taken_without_a_warning(monkeypatch, silent):
    clock(monkeypatch, together=10.0, single=0.1)
    _, trainer, _ = trainers(Recurrent, name="vectorized", dtype=torch.float32)
    assert isinstance(trainer, VectorizedTrainer)
    for round in range(2):
        trainer.on((0, 2), round).train(trainer._task.initial_params(3))


@pytest.mark.parametrize("make", [Scaled, lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.RNN)])
def test_models_with_all_their_rules_are_not_timed(monkeypatch, make):
    clock(monkeypatch, together=10.0, single=0.1)
    _, trainer, why = trainers(make, name="auto", dtype=torch.float32)
    assert isinstance(trainer, VectorizedTrainer)
    assert "times as" not in why


@needs_mkldnn
def test_other_warnings_are_shown():
    with pytest.warns(UserWarning, match="of the user's own"):
        trainers(Warned, name="auto", dtype=torch.float32)


def test_both_ways_end_in_the_same_place():
    """Ranks may choose differently."""
    ends = []
    for name in ("sequential", "vectorized"):
        _, trainer, _ = trainers(Recurrent, name=name, dtype=torch.float32)
        start = trainer._task.initial_params(3)
        blocks = [(0,), (2,)] if name == "sequential" else [(0, 2)]
        ends.append(torch.cat([trainer.on(ids, 0).train(start).delta for ids in blocks]))
    assert torch.allclose(*ends, atol=1e-6)
