"""Clients trained together end where they end one after another, whatever the model, the optimizer and their sizes."""

from dataclasses import dataclass, replace

import pytest
import torch

from fedddp.aggregation import FastSum
from fedddp.algorithms import ADAPTED, ALGORITHMS, FedAvg
from fedddp.checkpoints.saved import vector_sha256
from fedddp.clients import vectorized
from fedddp.clients.folded.layer import FoldedLinear
from fedddp.data import Examples
from fedddp.federation import federate
from fedddp.optim import SGD
from fedddp.types import Update
from tests.helpers.support import Recorder, assemble
from tests.helpers.zoo import BATCHED, HOW, SIZES, TOTAL, clients, dataset, images, start_of, task_of, trainers

pytestmark = pytest.mark.slow

NAMES = [name for name in ALGORITHMS if name not in ADAPTED]

OPTIMIZERS = {
    "sgd": SGD(lr=0.1),
    "momentum": SGD(lr=0.1, momentum=0.8),
    "nesterov": SGD(lr=0.1, momentum=0.8, nesterov=True),
    "weight decay": SGD(lr=0.1, weight_decay=0.05),
}
KEYS = {"fedbn": {"private": ["*.bias"]}}
"""Of algorithms that make nothing of these models by themselves."""
FEW = ("mlp", "odd convolutions", "group norm", "a parameter of its own")
"""Folded linear layers, convolutions as well, norms as well; vmap."""
BLOCKS = {1: [(k,) for k in range(6)], 3: [(1, 0, 2), (3, 5, 4)], 10: [tuple(range(6))]}
"""Not always longest first: clients that are done lie among those at work."""


@dataclass(frozen=True)
class Corrected(FedAvg):
    """Trains twice: with a proximal correction and, from where that led, without."""

    def client_update(self, server, client, local):
        near = local.train(server.w, lambda g, w: g + 0.5 * (w - server.w[: w.shape[1]]))
        result = local.train(near.w)
        again = local.train(server.w)
        delta = near.delta + result.delta + again.delta
        return Update({"delta": delta}, local.num_examples), client, replace(result, delta=delta)


def one_by_one(trainer, w, correct=None):
    results = [trainer.on((k,), 2).train(w if w.dim() == 1 else w[[k]], correct) for k in range(len(SIZES))]
    return {key: torch.cat([getattr(r, key) for r in results]) for key in ("delta", "steps", "loss", "accuracy")}


def assert_same(result, expected, rows=slice(None), tolerance=1e-9):
    delta = expected["delta"][rows]
    scale = delta.abs().amax(dim=1, keepdim=True)
    assert ((result.delta - delta).abs() <= tolerance * scale).all()
    assert result.steps.tolist() == expected["steps"][rows].tolist()
    assert result.accuracy.tolist() == pytest.approx(expected["accuracy"][rows].tolist(), abs=1e-15)
    assert result.loss.tolist() == pytest.approx(expected["loss"][rows].tolist(), rel=max(tolerance, 1e-9))


@pytest.mark.parametrize(("batch_size", "epochs"), [(5, 1), (5, 2), (0, 2)])
@pytest.mark.parametrize("model", BATCHED)
def test_every_model_learns_what_it_learns_one_by_one(model, batch_size, epochs):
    make = BATCHED[model]
    one, many, why = trainers(make, width=10, batch_size=batch_size, local_epochs=epochs)
    assert why == f"vectorized: 10 clients at once, {HOW[model]}"
    w = start_of(make)
    expected = one_by_one(one, w)
    assert expected["delta"][0].abs().max() > 0.01
    for blocks in BLOCKS.values():
        for ids in blocks:
            result = many.on(ids, 2).train(w)
            assert_same(result, expected, list(ids))
            assert torch.equal(result.w, w + result.delta)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", FEW)
def test_every_optimizer_moves_clients_at_work_and_leaves_the_others(model, optimizer, corrected):
    make = BATCHED[model]
    one, many, _ = trainers(make, optimizer=OPTIMIZERS[optimizer], width=10)
    w = start_of(make)
    correct = (lambda g, v: 0.9 * g + 0.3 * (v - w)) if corrected else None
    expected = one_by_one(one, w, correct)
    for ids in BLOCKS[10] + BLOCKS[3]:
        assert_same(many.on(ids, 2).train(w, correct), expected, list(ids))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("model", FEW)
def test_a_step_is_computed_up_to_the_last_client_at_work(monkeypatch, model, optimizer):
    """Clients of 23, 10, 9, 1, 1 and 0 examples, in batches of 5: the longest goes on alone for three steps."""
    _, many, _ = trainers(BATCHED[model], optimizer=OPTIMIZERS[optimizer], width=10, local_epochs=1)
    step, clients = type(many._oracle).step, []
    monkeypatch.setattr(type(many._oracle), "step", lambda *args: clients.append(len(args[2])) or step(*args))
    many.on((0, 3, 2, 4, 5, 1), 2).train(start_of(BATCHED[model]))
    assert clients == [5, 3, 1, 1, 1]


@pytest.mark.parametrize("model", FEW)
def test_nothing_is_read_before_it_is_written(model):
    """New memory holds NaN here."""
    _, many, _ = trainers(BATCHED[model], width=10)
    w = start_of(BATCHED[model])
    expected = [many.on(ids, 2).train(w).delta for ids in BLOCKS[3]]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        for ids, delta in zip(BLOCKS[3], expected, strict=True):
            assert torch.equal(many.on(ids, 2).train(w).delta, delta)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", BATCHED)
def test_one_local_step_in_single_precision(model):
    make = BATCHED[model]
    one, many, _ = trainers(make, width=10, dtype=torch.float32, batch_size=0, local_epochs=1)
    w = start_of(make, torch.float32)
    expected = one_by_one(one, w)["delta"]
    result = many.on(range(6), 2).train(w)
    assert result.delta.dtype == torch.float32
    assert (result.delta - expected).abs().max() <= 1e-6
    assert expected[0].abs().max() > 1e-3


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("model", FEW)
def test_clients_may_start_apart(model, corrected):
    make = BATCHED[model]
    one, many, _ = trainers(make, width=10)
    starts = start_of(make) * torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(-1, 1)
    correct = (lambda g, v: 2 * g) if corrected else None
    before, result = starts.clone(), many.on(range(6), 2).train(starts, correct)
    assert_same(result, one_by_one(one, starts, correct))
    assert torch.equal(result.start, starts)
    assert torch.equal(starts, before)


class Kept(FastSum):
    """A sum that keeps what clients send."""

    def __init__(self, dtype):
        super().__init__(dtype, "cpu")
        self.rows = []

    def add(self, rows, weight, ids=()):
        self.rows.append(rows)
        super().add(rows, weight, ids)


def run(folder, make, name, width, algorithm, rounds=1):
    """A federation of one rank: its last server state, what clients sent, the last report."""
    client = {"precision": "float64", "local_epochs": 2, "batch_size": 5, "execution": {"name": name, "width": width}}
    named = {"algorithm": {"name": algorithm, **KEYS.get(algorithm, {})}} if isinstance(algorithm, str) else {}
    sink, kept = Recorder(), Kept(torch.float64)
    f, server = assemble(
        folder, dataset(), SIZES, task=task_of(make), sinks=[sink], client=client, run={"rounds": rounds}, **named
    )
    assert f.trainer.width == max(1, width)
    f.pipeline.reduce = kept
    server = federate(f if named else replace(f, algorithm=algorithm), server)
    return server, torch.cat(kept.rows), sink.records[-1].report


@pytest.mark.parametrize("model", ["mlp", "frozen"])
@pytest.mark.parametrize("algorithm", [*NAMES, Corrected()], ids=[*NAMES, "corrected"])
def test_a_round_of_every_algorithm_is_that_of_sequential_training(tmp_path, algorithm, model):
    make = BATCHED[model]
    expected, sent, report = run(tmp_path, make, "sequential", 0, algorithm)
    start = start_of(make)
    for width in (1, 3, 10):
        server, rows, same = run(tmp_path, make, "vectorized", width, algorithm)
        assert (server.w - expected.w).abs().max() <= 1e-9 * (expected.w - start).abs().max()
        assert (rows - sent).abs().max() <= 1e-9 * sent.abs().max()
        assert same.failed == report.failed == ()
        assert same.loss.tolist() == pytest.approx(report.loss.tolist(), rel=1e-9)
        assert same.accuracy.tolist() == pytest.approx(report.accuracy.tolist(), abs=1e-15)


@pytest.mark.parametrize("model", FEW)
def test_the_same_run_gives_the_same_bits(tmp_path, model):
    sums = {vector_sha256(run(tmp_path, BATCHED[model], "vectorized", 3, "fedavg", 2)[0].w) for _ in range(2)}
    assert len(sums) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("model", FEW)
def test_clients_do_not_notice_each_other(model, optimizer):
    """The examples of clients 0 and 2 become huge, and with them what pads client 1, which has none of its own."""
    few = images()
    huge = Examples(few.x.index_fill(0, torch.arange(23 + 9), 1e30), few.y)
    how = {"optimizer": OPTIMIZERS[optimizer], "width": 10}
    w, others = start_of(BATCHED[model]), [1, 3, 4, 5]
    plain, odd = (
        trainers(BATCHED[model], data=clients(examples), **how)[1].on(range(6), 0).train(w) for examples in (few, huge)
    )
    assert torch.equal(odd.delta[others], plain.delta[others])
    assert torch.equal(odd.loss[others], plain.loss[others])
    assert not torch.equal(odd.delta[0], plain.delta[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", FEW)
def test_clients_without_examples_stay_exactly_where_they_are(model, optimizer):
    _, many, _ = trainers(
        BATCHED[model], optimizer=OPTIMIZERS[optimizer], width=10, data=clients(sizes=[3, 0, TOTAL - 3, 0])
    )
    w = start_of(BATCHED[model])
    for ids in ((1,), (1, 3), (0, 1, 2, 3)):
        result = many.on(ids, 0).train(w)
        rows = [i for i, k in enumerate(ids) if k in (1, 3)]
        assert not result.delta[rows].any()
        assert (
            result.steps[rows].tolist()
            == result.loss[rows].tolist()
            == result.accuracy[rows].tolist()
            == [0] * len(rows)
        )


def test_a_linear_layer_is_factored_while_few_examples_are_seen(monkeypatch):
    """Client 0 sees 25 examples, padding included: at most twice in out / (in + out) of all layers but the last."""
    taken, learn = {}, FoldedLinear.learn_from

    def noted(layer, x, dy):
        taken[layer.name] = layer._factors is not None
        learn(layer, x, dy)

    monkeypatch.setattr(FoldedLinear, "learn_from", noted)
    make = BATCHED["mlp"]
    w = start_of(make)
    expected = {(5, 1): [True, True, False], (5, 2): [False, False, False], (1, 1): [True, True, False]}
    for (batch_size, epochs), forms in expected.items():
        _, many, _ = trainers(make, width=10, batch_size=batch_size, local_epochs=epochs)
        many.on((0, 2), 0).train(w)
        assert list(taken.values()) == forms[::-1], (batch_size, epochs)
        many.on((0, 2), 0).train(w.expand(2, -1))  # they may start apart: nothing to share
        assert not any(taken.values())


@pytest.mark.parametrize("rows", [1, 40, 10**6])
def test_how_many_batches_are_made_ready_at_once_changes_no_bit(rows, monkeypatch):
    _, many, _ = trainers(BATCHED["mlp"], width=10)
    w = start_of(BATCHED["mlp"])
    result = many.on(range(6), 0).train(w)
    monkeypatch.setattr(vectorized, "NUMBERS_AT_ONCE", rows * 64)
    again = many.on(range(6), 0).train(w)
    assert torch.equal(again.delta, result.delta)
    assert torch.equal(again.loss, result.loss)
