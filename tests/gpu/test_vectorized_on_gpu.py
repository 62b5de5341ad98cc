"""Clients trained together on a GPU end where they end one by one there, and replayed steps where others do."""

import pytest
import torch

from fedddp.clients import SequentialTrainer, VectorizedTrainer, choose
from fedddp.clients.folded import FoldedModel
from fedddp.clients.graphed import GraphedModel, Recording
from fedddp.data import ClientData, Normalizer, Partition
from fedddp.optim import SGD
from tests.helpers.zoo import BATCHED, FOLDED, images, start_of, task_of, training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LENGTHS = [40, 40, 40, 7, 40, 33, 0]
BLOCKS = [(0, 1, 2, 4), (0, 1, 4, 5, 3, 6), (2, 4), (5,)]
REPLAYED = "layers folded over clients, steps replayed as a CUDA graph"
OPTIMIZERS = {"sgd": SGD(lr=0.1), "momentum": SGD(lr=0.1, momentum=0.8)}


def parts(model, dtype, optimizer="sgd"):
    """What trainers are made of."""
    task, device = task_of(BATCHED[model], dtype), torch.device("cuda", torch.cuda.current_device())
    examples = images(sum(LENGTHS))
    partition = Partition.dealt(torch.arange(sum(LENGTHS)).numpy(), torch.tensor(LENGTHS).numpy())
    data = ClientData(examples, partition, Normalizer((0.0,), (1.0,), dtype, device), device=device)
    spec = training(OPTIMIZERS[optimizer], local_epochs=2, batch_size=5, seed=3, device=device, dtype=dtype)
    return task, data, spec


def start(model, dtype):
    return start_of(BATCHED[model], dtype).cuda()


def assert_close(ours, theirs, tolerance):
    for key in ("delta", "loss", "accuracy"):
        a, b = getattr(ours, key), getattr(theirs, key)
        assert (a - b).abs().max() <= tolerance * max(1e-3, b.abs().max())


def one_by_one(trainer, ids, round, w):
    results = [trainer.on((k,), round).train(w) for k in ids]
    first = results[0]
    return type(first)(
        w, *(torch.cat([getattr(r, key) for r in results]) for key in ("delta", "steps", "loss", "accuracy"))
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [*FOLDED, "group norm", "a parameter of its own"])
def test_sequential_and_vectorized_end_alike(model, optimizer):
    task, data, spec = parts(model, torch.float64, optimizer)
    many, why = choose(task, data, images(8), spec, name="vectorized", width=10)
    assert isinstance(many, VectorizedTrainer)
    assert (REPLAYED in why) == (model in (*FOLDED, "group norm") and optimizer == "sgd")
    one = SequentialTrainer(task, data, spec)
    w = start(model, torch.float64)
    for round, ids in enumerate(BLOCKS + BLOCKS):
        assert_close(many.on(ids, round).train(w), one_by_one(one, ids, round, w), 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 0.1)])
@pytest.mark.parametrize("model", FOLDED)
def test_replayed_steps_end_where_the_same_steps_do(model, dtype, tolerance):
    """In float32 cuDNN may choose other algorithms, and a ReLU that flips on rounding moves a whole step (3% seen)."""
    task, data, spec = parts(model, dtype)
    graphed, plain = GraphedModel(FoldedModel(task.model(3), spec.device)), FoldedModel(task.model(3), spec.device)
    replaying, usual = (VectorizedTrainer(task, data, spec, oracle, 10) for oracle in (graphed, plain))
    w = start(model, dtype)
    for round, ids in enumerate(BLOCKS + BLOCKS):
        before = graphed.replayed
        assert_close(replaying.on(ids, round).train(w), usual.on(ids, round).train(w), tolerance)
        assert graphed.replayed > before or min(LENGTHS[k] for k in ids) < 33  # a client is done before a recording
    assert graphed.refused is None


def test_a_model_that_waits_for_the_device_is_not_replayed():
    class Waiting(torch.nn.Sequential):
        def forward(self, x):
            assert x.sum().item() < 1e9
            return super().forward(x)

    make = lambda: Waiting(torch.nn.Flatten(), torch.nn.Linear(64, 5)).double()  # noqa: E731
    _, data, spec = parts("mlp", torch.float64)
    task = task_of(make)
    trainer, why = choose(task, data, images(8), spec, name="vectorized", width=10)
    assert "steps not replayed as a CUDA graph (" in why
    w = task.initial_params(3).to(spec.device)
    one = SequentialTrainer(task, data, spec)
    for ids in BLOCKS:
        assert_close(trainer.on(ids, 0).train(w), one_by_one(one, ids, 0, w), 1e-9)


def test_a_recording_that_fails_leaves_the_stream_as_it_was():
    stream = torch.cuda.current_stream()

    def waits(x, y, share):
        return x * x.sum().item(), share

    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError):
        Recording(waits, (x, x, x))
    assert torch.cuda.current_stream() == stream
    assert (x + 1).sum().item() == 6
