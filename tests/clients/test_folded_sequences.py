"""Embeddings, norms, recurrent layers and attention of K clients against K plain models."""

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, choose
from fedddp.clients.folded import FoldedModel, recurrent
from fedddp.clients.folded.recurrent import FoldedGRU, FoldedLSTM
from fedddp.optim import SGD, Adam
from tests.clients.test_folded import B, K, assert_close, collected, folded, plainly, random
from tests.helpers.sequences import LENGTH, MODELS, VOCABULARY, Attentive, Reader, readers, sequences
from tests.helpers.zoo import SIZES, start_of, task_of, training

NORMS = {
    "layer": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "layer without bias": (lambda: nn.LayerNorm(6, bias=False), (6,)),
    "layer of two axes": (lambda: nn.LayerNorm((5, 6)), (2, 5, 6)),
    "rms": (lambda: nn.RMSNorm(6), (5, 6)),
    "group": (lambda: nn.GroupNorm(2, 6), (6, 4, 5)),
    "group of sequences": (lambda: nn.GroupNorm(3, 6), (6, 7)),
    "group of features": (lambda: nn.GroupNorm(3, 6), (6,)),
}
OPTIMIZERS = {"sgd": SGD(lr=0.3), "momentum": SGD(lr=0.1, momentum=0.8), "adam": Adam(lr=0.01, eps=1e-3)}
"""Of Adam with a smaller eps, rounding where a gradient is 0 (a key's bias) would become steps of some size."""


def moved(make):
    """A layer with weights that differ from number to number."""

    def build():
        layer = make()
        for p in layer.parameters():
            nn.init.normal_(p)
        return layer

    return build


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_that_of_each_client(kind):
    make, shape = NORMS[kind]
    oracle, w, flat = folded(lambda: nn.Sequential(moved(make)(), nn.ReLU()))
    x, dy = random(K, B, *shape), random(K, B, *shape, seed=1)
    assert_close(collected(oracle, w, x, dy), plainly(flat, x, dy))


def test_a_norm_without_parameters_stays_as_it_is():
    norms = nn.LayerNorm(4, elementwise_affine=False), nn.GroupNorm(2, 4, affine=False)
    oracle = FoldedModel(nn.Sequential(nn.Linear(4, 4), *norms))
    assert tuple(oracle.module)[1:] == norms


@pytest.mark.parametrize("padding", [None, 0, 2])
@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_an_embedding_is_that_of_each_client(shape, padding):
    oracle, w, flat = folded(lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=padding)))
    x = torch.randint(7, (K, B, *shape), generator=torch.Generator().manual_seed(0))
    dy, g = random(K, B, *shape, 3, seed=1), torch.full_like(w, torch.nan)
    oracle.collect(w, g)
    y = oracle.forward(x)
    y.backward(dy)
    theirs = torch.stack([f.module(own) for f, own in zip(flat, x, strict=True)])
    grads = torch.autograd.grad(theirs, [f.params[0] for f in flat], dy)
    assert_close([y.detach(), g], [theirs.detach(), torch.stack(grads).flatten(1)])


@pytest.fixture(params=["by steps", "by the library"])
def lstm(request, monkeypatch):
    """How LSTMs are trained."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: request.param == "by the library")


@pytest.mark.usefixtures("lstm")
@pytest.mark.parametrize("near", [recurrent.NEAR, 1])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("how", [{}, {"batch_first": True, "num_layers": 3}, {"bias": False, "num_layers": 2}])
def test_a_recurrent_layer_is_that_of_each_client(monkeypatch, kind, how, near):
    """Outputs and final states, also where the clients' weights are too many to stay near."""
    monkeypatch.setattr(recurrent, "NEAR", near)

    class Everything(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(3, 5, **how)

        def forward(self, x):
            x = x if self.layer.batch_first else x.transpose(0, 1)
            y, states = self.layer(x)
            y = y if self.layer.batch_first else y.transpose(0, 1)
            states = states if isinstance(states, tuple) else (states,)
            return torch.cat([y.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], dim=1)

    oracle, w, flat = folded(Everything)
    x = random(K, B, 4, 3)
    dy = random(K, B, flat[0].module(x[0]).shape[1], seed=1)
    assert_close(collected(oracle, w, x, dy), plainly(flat, x, dy))


REFUSED = {
    "max norm": lambda: nn.Embedding(4, 4, max_norm=1.0),
    "sparse": lambda: nn.Embedding(4, 4, sparse=True),
    "scaled by counts": lambda: nn.Embedding(4, 4, scale_grad_by_freq=True),
    "both directions": lambda: nn.LSTM(4, 4, bidirectional=True),
    "dropout": lambda: nn.GRU(4, 4, 2, dropout=0.5),
    "projection": lambda: nn.LSTM(4, 4, proj_size=2),
    "attention with weights of its own": lambda: nn.MultiheadAttention(4, 2),
    "tied": lambda: Attentive(tied=True),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_computes_something_else_is_refused(kind):
    with pytest.raises(ValueError, match=r"^[\w.]+ is not of one layer alone, of a plain kind that folds$"):
        FoldedModel(nn.ModuleDict({"body": REFUSED[kind](), "head": nn.Linear(3, 3)}))


def test_a_single_sequence_is_refused():
    oracle, w, _ = folded(lambda: nn.Sequential(nn.LSTM(3, 5)))
    oracle.load(w[0])
    refused = pytest.raises(ValueError, match=r"^layer '0' needs sequences of a batch, \[B, T, I\] or \[T, B, I\]$")
    with torch.no_grad(), refused:
        oracle.module(torch.zeros(4, 3, dtype=torch.float64))


def both(make, optimizer=OPTIMIZERS["sgd"], **how):
    """(sequential, batched, the start)."""
    task, data = task_of(make), readers()
    spec = training(optimizer, **{"local_epochs": 2, "batch_size": 5, "seed": 3} | how)
    batched, why = choose(task, data, sequences(8), spec, name="vectorized", width=6)
    assert why == "vectorized: 6 clients at once, layers folded over clients"
    return SequentialTrainer(task, data, spec), batched, start_of(make)


BLOCKS = (1, 0, 2), (3, 5, 4), (0, 1, 2, 3, 4, 5)
"""Not always longest first: clients that are done lie among those at work."""


def assert_same(one, many, w, correct=None, blocks=BLOCKS):
    expected = [one.on((k,), 2).train(w, correct) for k in range(len(SIZES))]
    assert expected[0].delta.abs().max() > 0.01
    for ids in blocks:
        result = many.on(ids, 2).train(w, correct)
        for row, k in enumerate(ids):
            delta = expected[k].delta[0]
            assert (result.delta[row] - delta).abs().max() <= 1e-9 * max(1e-3, float(delta.abs().max()))
            assert float(result.loss[row]) == pytest.approx(float(expected[k].loss), rel=1e-9)
            assert float(result.accuracy[row]) == pytest.approx(float(expected[k].accuracy), abs=1e-15)


@pytest.mark.usefixtures("lstm")
@pytest.mark.parametrize("model", MODELS)
def test_sequences_teach_clients_together_what_they_teach_them_one_by_one(model):
    assert_same(*both(MODELS[model]))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("model", ["lstm", "gru", "attention"])
def test_an_optimizer_and_a_correction_get_the_same_gradients(model, optimizer):
    one, many, w = both(MODELS[model], OPTIMIZERS[optimizer])
    assert_same(one, many, w, blocks=[(1, 0, 2)])
    assert_same(one, many, w, lambda g, v: 0.9 * g + 0.3 * (v - w), blocks=[(3, 5, 4, 0)])


@pytest.mark.parametrize("model", ["lstm", "gru", "attention"])
def test_one_step_over_sequences_in_single_precision(model):
    """The library's LSTM is another one there than in double precision, on a CPU."""
    task, data = task_of(MODELS[model], torch.float32), readers(torch.float32)
    spec = training(OPTIMIZERS["sgd"], batch_size=0, dtype=torch.float32)
    batched, _ = choose(task, data, sequences(8), spec, name="vectorized", width=6)
    w, one = start_of(MODELS[model], torch.float32), SequentialTrainer(task, data, spec)
    expected = torch.cat([one.on((k,), 0).train(w).delta for k in range(len(SIZES))])
    assert (batched.on(range(6), 0).train(w).delta - expected).abs().max() <= 1e-6
    assert expected[0].abs().max() > 1e-3


def test_positions_are_known_by_not_depending_on_the_number_of_examples():
    """Six clients with as many examples as a sequence has positions: nothing but that tells ids of each from theirs."""
    oracle, w, flat = folded(Attentive, clients=LENGTH)
    x = torch.randint(VOCABULARY, (LENGTH, 1, LENGTH), generator=torch.Generator().manual_seed(0))
    oracle.collect(w, torch.zeros_like(w))
    expected = torch.stack([f.module(own) for f, own in zip(flat, x, strict=True)])
    assert_close([oracle.forward(x).detach()], [expected.detach()])


@pytest.mark.parametrize(
    ("layer", "kind", "method"), [(FoldedLSTM, nn.LSTM, "of_client"), (FoldedGRU, nn.GRU, "ahead")]
)
def test_a_recurrent_layer_that_computes_something_else_is_found_out(monkeypatch, layer, kind, method):
    right = getattr(layer, method)

    def wrong(self, given, x, *more):
        return right(self, given, x * 1.001, *more)

    monkeypatch.setattr(layer, method, wrong)
    task, data = task_of(lambda: Reader(kind)), readers()
    _, why = choose(task, data, sequences(8), training(), name="vectorized", width=6)
    assert why == "vectorized: 6 clients at once, torch.func.vmap"
