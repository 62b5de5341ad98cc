"""fedddp.clients.graphed: which steps are replayed and on what, with a stand-in for CUDA's recordings.

The stand-in computes the step again whenever it is replayed, and insists on what a CUDA graph takes for granted: that
weights lie where they lay when it was recorded. That replays on a GPU give the same is tested in tests/gpu.
"""

import pytest
import torch

from fedddp.clients import SequentialTrainer, VectorizedTrainer, graphed
from fedddp.clients.folded import FoldedModel
from fedddp.clients.graphed import WARM_UP, GraphedModel
from fedddp.optim import SGD
from tests.helpers.zoo import FOLDED, clients, images, start_of, task_of, training

LENGTHS = [20, 20, 20, 7, 20, 18]
"""Steps of a client: 12, of client 3: 6."""


@pytest.fixture
def recordings(monkeypatch):
    """The stand-ins that were made."""
    made = []

    class Again:
        def __init__(self, step, inputs):
            self.step, self.inputs, self.model = step, [t.clone() for t in inputs], step.func.__self__
            self.place, self.replays = self.where(), 0
            made.append(self)

        def where(self):
            return self.model._w.data_ptr(), self.model._w.shape, self.model._layers[0].weight.data_ptr()

        def replay(self, *inputs):
            assert self.where() == self.place
            assert self.model._layers[-1].lr == 0.1
            for kept, new in zip(self.inputs, inputs, strict=True):
                assert kept.shape == new.shape
                kept.copy_(new)
            self.replays += 1
            return self.step(*self.inputs)

    monkeypatch.setattr(graphed, "Recording", Again)
    monkeypatch.setattr(graphed, "aside", lambda step, *inputs: step(*inputs))
    return made


def trainers(model, optimizer=None):
    make = FOLDED[model]
    task, data = task_of(make), clients(images(sum(LENGTHS)), sizes=LENGTHS)
    optimizer = optimizer or SGD(lr=0.1)
    oracle = GraphedModel(FoldedModel(task.model(3)))
    spec = training(optimizer, local_epochs=3, batch_size=5, seed=3)
    return SequentialTrainer(task, data, spec), VectorizedTrainer(task, data, spec, oracle, 10), oracle


def assert_same(one, many, ids, round, start, correct=None):
    result = many.on(ids, round).train(start, correct)
    expected = [one.on((k,), round).train(start, correct) for k in ids]
    for key in ("delta", "loss", "accuracy"):
        ours, theirs = getattr(result, key), torch.cat([getattr(r, key) for r in expected])
        assert (ours - theirs).abs().max() <= 1e-10 * max(1e-3, theirs.abs().max())


@pytest.mark.parametrize("model", ["mlp", "cnn", "sequences"])
def test_replayed_steps_end_where_one_by_one_training_does(recordings, model):
    one, many, oracle = trainers(model)
    start = start_of(FOLDED[model])
    assert_same(one, many, (0, 1, 2), 0, start)
    (first,) = recordings
    assert first.replays == oracle.replayed == 12 - WARM_UP
    assert_same(one, many, (2, 1, 0), 1, start + 0.01)
    assert first.replays == 12 + 12 - WARM_UP
    assert recordings == [first]


def test_a_step_without_all_clients_of_the_block_is_taken_as_usual(recordings):
    one, many, oracle = trainers("mlp")
    assert_same(one, many, (0, 1, 2, 3), 0, start_of(FOLDED["mlp"]))
    assert oracle.replayed == 6 - WARM_UP
    assert_same(one, many, (4, 5, 3), 1, start_of(FOLDED["mlp"]))
    assert [r.replays for r in recordings] == [6 - WARM_UP] * 2  # another number of clients is another shape


def test_a_larger_block_makes_recordings_anew(recordings):
    one, many, oracle = trainers("mlp")
    start = start_of(FOLDED["mlp"])
    for ids in ((0, 1), (0, 1, 2), (0, 1)):
        assert_same(one, many, ids, 0, start)
    assert len(recordings) == 2 + 1  # those of two clients worked on a buffer of two
    assert [r.replays for r in recordings] == [12 - WARM_UP] * 2 + [12]
    assert oracle.replayed == sum(r.replays for r in recordings)


def test_corrected_and_accelerated_training_is_not_replayed(recordings):
    start = start_of(FOLDED["mlp"])
    for optimizer, correct in ((None, lambda g, w: 2 * g), (SGD(lr=0.1, momentum=0.5), None)):
        one, many, oracle = trainers("mlp", optimizer)
        assert_same(one, many, (0, 1, 2), 0, start, correct)
        assert (oracle.replayed, recordings) == (0, [])
    one, many, oracle = trainers("mlp")
    for correct in (None, lambda g, w: 2 * g, None):
        assert_same(one, many, (0, 1, 2), 0, start, correct)
    assert oracle.replayed == 24 - WARM_UP


def test_shapes_beyond_the_most_are_taken_as_usual(recordings, monkeypatch):
    monkeypatch.setattr(graphed, "MOST_GRAPHS", 1)
    one, many, _ = trainers("mlp")
    for ids in ((0, 1, 2), (0, 1), (0,)):
        assert_same(one, many, ids, 0, start_of(FOLDED["mlp"]))
    assert len(recordings) == 1


def test_a_step_that_cannot_be_recorded_is_taken_and_nothing_is_tried_again(monkeypatch, recordings):
    tried = []

    class Refusing:
        def __init__(self, step, inputs):
            tried.append(step)
            raise RuntimeError("not while recording\nmore")

    monkeypatch.setattr(graphed, "Recording", Refusing)
    one, many, oracle = trainers("mlp")
    for round in (0, 1):
        assert_same(one, many, (0, 1, 2), round, start_of(FOLDED["mlp"]))
    assert oracle.refused == "RuntimeError: not while recording"
    assert (len(tried), oracle.replayed) == (1, 0)
