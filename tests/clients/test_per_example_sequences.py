"""Sums of clipped gradients of single examples, of models of token sequences; DP-SGD on them."""

import pytest
import torch
from torch import nn

from fedddp.clients.private import choose_private
from fedddp.clients.private.canaries import DIRAC
from fedddp.clients.private.choose import GHOST, ONE_BY_ONE, VMAP
from fedddp.clients.private.ghost import GhostExamples
from fedddp.clients.private.oracle import OneByOneExamples
from fedddp.privacy.randomness import Randomness
from tests.clients.test_per_example import B, K, one_by_one, weights
from tests.helpers.sequences import MODELS, Attentive, Reader, readers, sequences
from tests.helpers.zoo import Scaled, normed, start_of, task_of, training


def batch():
    few = sequences(K * B)
    mask = torch.arange(B) < torch.tensor([7, 2, 5]).view(K, 1)
    return few.x.view(K, B, -1), few.y.view(K, B), mask


@pytest.mark.parametrize("kind", [GhostExamples, OneByOneExamples])
@pytest.mark.parametrize("model", MODELS)
def test_sums_are_those_of_gradients_taken_and_clipped_one_by_one(kind, model):
    make, (x, y, mask) = MODELS[model], batch()
    each = one_by_one(make, x, y)
    norms = each.norm(dim=2)
    clip = float(norms.median())
    factor = (clip / norms).clamp(max=1) * mask
    assert 0 < (factor < 1).sum() < factor.numel()
    oracle, w = kind(task_of(make).model(3)), weights(make)
    got = torch.full_like(w[:, : oracle.spec.num_trainable], torch.nan)
    oracle.collect(w, got)
    measured = oracle.step(task_of(make), x, y, mask, clip)
    assert torch.allclose(measured, norms, rtol=1e-9, atol=0)
    expected = (factor.unsqueeze(2) * each).sum(dim=1)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


def private(make, *, width=6, sigma=1.0):
    """(the trainer that is chosen, why)."""
    spec = training(local_epochs=2, batch_size=5, seed=3)
    how = {"clip": 0.5, "noise_multiplier": sigma, "width": width}
    return choose_private(task_of(make), readers(), sequences(8), spec, Randomness.seeded(0, "dp-sgd"), **how)


@pytest.mark.parametrize(
    ("make", "way"),
    [
        (MODELS["lstm"], GHOST),
        (MODELS["attention"], GHOST),
        (lambda: Attentive(tied=True), VMAP),
        (lambda: Reader(nn.RNN), ONE_BY_ONE),
    ],
    ids=["lstm", "attention", "tied", "rnn"],
)
def test_clients_of_sequences_end_where_they_end_one_by_one(make, way):
    trainer, why = private(make)
    assert why.startswith(f"by DP-SGD: 6 clients at once, {way}")
    one, _ = private(make, width=1)
    w = start_of(make)
    alone = torch.cat([one.on((k,), 2).train(w).delta for k in range(6)])
    assert alone[0].abs().max() > 0.01
    together = trainer.on(range(6), 2).train(w).delta
    assert (together - alone).abs().max() <= 1e-9 * alone.abs().max()


def test_a_model_without_gradients_is_refused_in_a_line():
    class Detached(Reader):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match=r"^per-example gradients of this model fail \(.*\); .*privacy\.level=client$"):
        private(Detached)


def test_group_norm_is_clipped_without_per_example_gradients_and_a_parameter_of_its_own_is_not():
    assert GhostExamples(normed())
    with pytest.raises(ValueError, match="scale is not of one layer alone"):
        GhostExamples(Scaled())


def test_a_canary_lies_in_the_largest_matrix_of_a_recurrent_layer():
    oracle, clip = DIRAC[GhostExamples](GhostExamples(nn.Sequential(nn.LSTM(3, 8, batch_first=True)))), 0.5
    views = oracle.spec.views(torch.arange(oracle.spec.dim))
    assert torch.equal(oracle.coordinates, views["0.weight_hh_l0"].flatten())
    w, g = torch.zeros(1, oracle.spec.dim), torch.full((1, oracle.spec.dim), torch.nan)
    oracle.collect(w, g)
    oracle.size = 1e6 * clip
    oracle.step(None, torch.zeros(1, 2, 4, 3), torch.tensor([[5, -1]]), torch.ones(1, 2, dtype=torch.bool), clip)  # type: ignore[arg-type]
    expected = torch.zeros_like(g)
    expected[0, oracle.coordinates[5]] = clip
    torch.testing.assert_close(g, expected, rtol=1e-5, atol=1e-5 * clip)
