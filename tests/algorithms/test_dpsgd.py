"""Example-level DP-SGD: what a client's steps are, how batches are drawn, what the noise is, who may not use it."""

from math import sqrt

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer
from fedddp.clients.private import PrivateTrainer, choose_private, private_steps, sampling_rate
from fedddp.clients.private.choose import GHOST, VMAP
from fedddp.clients.private.oracle import VmappedExamples
from fedddp.data import Examples
from fedddp.optim import SGD
from fedddp.privacy.randomness import Randomness
from tests.helpers.zoo import BATCHED, CLASSES, SIZES, TOTAL, Centred, clients, images, start_of, task_of, training

FEW = {
    "mlp": GHOST,
    "a forward that views": f"{GHOST}, contiguous",
    "group norm": GHOST,
    "a parameter of its own": VMAP,
}


def private(make, *, sigma=1.0, clip=0.5, width=10, optimizer=None, data=None, dtype=torch.float64, seed=0, **how):
    """(the trainer that is chosen, why)."""
    spec = training(optimizer, dtype=dtype, **{"local_epochs": 2, "batch_size": 5, "seed": 3} | how)
    randomness = Randomness.seeded(seed, "dp-sgd")
    noise = {"clip": clip, "noise_multiplier": sigma}
    return choose_private(
        task_of(make, dtype), data or clients(dtype=dtype), images(8), spec, randomness, **noise, width=width
    )


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.8, weight_decay=0.05)], ids=["sgd", "other"])
@pytest.mark.parametrize("model", FEW)
def test_clients_end_where_they_end_one_by_one(model, optimizer):
    """Whoever trains beside them, in whatever order, and however often: batches and noise are the client's own."""
    make = BATCHED[model]
    trainer, why = private(make, optimizer=optimizer)
    assert why.startswith(f"by DP-SGD: 10 clients at once, {FEW[model]}")
    one, why = private(make, optimizer=optimizer, width=1)
    assert why.startswith("by DP-SGD: 1 client at once")
    w = start_of(make)
    correct = lambda g, v: 0.9 * g + 0.3 * (v - w[: v.shape[1]])  # noqa: E731
    alone = torch.cat([one.on((k,), 2).train(w, correct).delta for k in range(6)])
    assert not alone[1].any()
    assert (alone[[0, 2, 3, 4, 5]].abs().amax(dim=1) > 0.01).all()
    for ids in ((0, 2, 3, 1, 4, 5), (3, 1, 0), (5, 4)):
        result = trainer.on(ids, 2).train(w, correct)
        assert (result.delta - alone[list(ids)]).abs().max() <= 1e-9 * alone.abs().max()
        assert result.steps.tolist() == [private_steps(SIZES[k], 2, 5) for k in ids]
    again, _ = private(make, optimizer=optimizer)
    assert torch.equal(again.on((5, 4), 2).train(w, correct).delta, result.delta)
    for other in (again.on((5, 4), 3), private(make, optimizer=optimizer, seed=1)[0].on((5, 4), 2)):
        assert (other.train(w, correct).delta - result.delta).abs().min(dim=1).values.max() > 0


@pytest.mark.parametrize("model", ["mlp", "cnn", "group norm"])
def test_without_noise_clipping_and_sampling_it_is_gradient_descent(model):
    make = BATCHED[model]
    how = {"local_epochs": 3, "batch_size": 0, "seed": 3}
    for optimizer in (SGD(lr=0.1), SGD(lr=0.1, momentum=0.8)):
        trainer, _ = private(make, sigma=0.0, clip=1e9, optimizer=optimizer, **how)
        plain = SequentialTrainer(task_of(make), clients(), training(optimizer, **how))
        w = start_of(make)
        expected = torch.cat([plain.on((k,), 0).train(w).delta for k in range(6)])
        result = trainer.on(range(6), 0).train(w)
        assert (result.delta - expected).abs().max() <= 1e-9 * expected.abs().max()
        assert result.steps.tolist() == [3, 0, 3, 3, 3, 3]


def test_loss_and_accuracy_are_not_computed():
    """They would be means over few examples without noise."""
    trainer, _ = private(BATCHED["mlp"])
    result = trainer.on(range(6), 0).train(start_of(BATCHED["mlp"]))
    assert result.loss.isnan().all()
    assert result.accuracy.isnan().all()
    assert result.loss.shape == result.accuracy.shape == (6,)


@pytest.mark.parametrize(
    ("size", "epochs", "batch_size", "rate", "steps"),
    [
        (100, 1, 10, 0.1, 10),
        (104, 1, 10, 10 / 104, 10),
        (100, 3, 0, 1, 3),
        (7, 2, 10, 1, 2),
        (0, 5, 10, 1, 0),
        (7, 1, 5, 5 / 7, 1),
    ],
)
def test_rates_and_steps(size, epochs, batch_size, rate, steps):
    assert sampling_rate(size, batch_size) == pytest.approx(rate, rel=1e-15)
    assert private_steps(size, epochs, batch_size) == steps


class Drawn:
    """An oracle that keeps what it is asked for, and says that every gradient is 0."""

    def __init__(self, spec):
        self.spec, self.batches = spec, []

    def collect(self, w, g):
        self.g = g

    def step(self, task, x, y, mask, clip):
        self.batches.append((x, mask))
        self.g[: len(x)] = 0
        return torch.zeros_like(mask, dtype=torch.float64)


def drawing(sizes, *, sigma=0.0, clip=1.0, optimizer=None, randomness=None, **how):
    """A trainer whose oracle is `Drawn`; the example i of all is the number i."""
    few = images(sum(sizes))
    numbered = torch.arange(float(sum(sizes)), dtype=torch.float64).view(-1, 1, 1, 1).expand_as(few.x)
    make = BATCHED["mlp"]
    oracle = Drawn(VmappedExamples(task_of(make).model(3)).spec)
    data = clients(Examples(numbered, few.y), sizes=sizes)
    randomness = randomness or Randomness.seeded(0, "drawing")
    spec, noise = training(optimizer or SGD(lr=1.0), **how), {"clip": clip, "noise_multiplier": sigma}
    trainer = PrivateTrainer(task_of(make), data, spec, oracle, 8, randomness, **noise)
    return trainer, oracle, start_of(make)


def test_batches_are_poisson_samples():
    """Sizes are binomial, not fixed; every example of a client comes equally often, and apart from every other."""
    n, b, rounds = 40, 10, 100
    trainer, oracle, w = drawing([n, 3], batch_size=b, local_epochs=10)
    for t in range(rounds):
        trainer.on((0, 1), t).train(w)
    rows = torch.zeros(rounds * 40, n)  # of client 0: which examples each step drew
    for step, (x, mask) in enumerate(oracle.batches):
        drawn = x[0, :, 0, 0, 0][mask[0]].long()
        assert len(drawn.unique()) == len(drawn)
        assert (drawn < n).all()
        rows[step, drawn] = 1
        if len(x) > 1:
            assert x[1, :, 0, 0, 0][mask[1]].tolist() == [40, 41, 42]  # q = 1: all of them, each time
    steps, q = len(rows), b / n
    counts = rows.sum(dim=1)
    assert abs(float(counts.mean()) - b) < 4 * sqrt(n * q * (1 - q) / steps)
    variance = n * q * (1 - q)
    assert abs(float(counts.var()) - variance) < 5 * variance * sqrt(2 / steps)
    deviation = (rows.sum(dim=0) - steps * q) / sqrt(steps * q * (1 - q))
    assert deviation.abs().max() < 4.5
    together = rows.T @ rows / steps - q * q
    assert together.fill_diagonal_(0).abs().max() < 5.5 * q * (1 - q) / sqrt(steps)


class Empty:
    """A stream that draws nobody."""

    def bernoulli(self, n, p):
        return torch.zeros(n, dtype=torch.bool)


class Never:
    """Randomness whose batches are empty."""

    def child(self, purpose, *path):
        return Empty() if purpose == "batches" else Randomness.seeded(1, purpose, *path)


def test_an_empty_batch_is_a_step_of_noise():
    trainer, oracle, w = drawing([20], sigma=2.0, batch_size=5, randomness=Never())
    result = trainer.on((0,), 0).train(w)
    assert oracle.batches == []
    assert result.steps.tolist() == [4]
    assert float(result.delta.std()) == pytest.approx(2.0 / 5 * sqrt(4), rel=0.05)


@pytest.mark.parametrize(("sigma", "clip"), [(1.3, 0.5), (0.4, 3.0)])
def test_the_noise_is_normal_of_the_stated_size(sigma, clip):
    """One step at lr 1 from the same start with and without noise: (difference) B / (sigma C) is standard normal."""
    stats = pytest.importorskip("scipy.stats")
    make, b = BATCHED["mlp"], 5
    how = {"optimizer": SGD(lr=1.0), "clip": clip, "local_epochs": 1, "batch_size": b}
    sizes = [b + 1, b + 1, TOTAL - 2 * b - 2]
    w = start_of(make)
    noised, clean = (private(make, sigma=s, data=clients(sizes=sizes), **how)[0] for s in (sigma, 0.0))
    z = (noised.on((0, 1), 4).train(w).delta - clean.on((0, 1), 4).train(w).delta) * b / (sigma * clip)
    assert clean.on((0, 1), 4).train(w).delta.abs().max() > 1e-3
    for row in z:
        assert float(row.var()) == pytest.approx(1, abs=5 * sqrt(2 / len(row)))
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3
    assert abs(float((z[0] * z[1]).mean())) < 5 / sqrt(z.shape[1])  # each client its own


def test_noise_of_steps_is_apart():
    """No step repeats another's: four steps add up to the variance of four."""
    trainer, _, w = drawing([20], sigma=1.0, batch_size=5)
    delta = trainer.on((0,), 0).train(w).delta
    assert float(delta.std()) == pytest.approx(1 / 5 * sqrt(4), rel=0.05)
    other = trainer.on((0,), 1).train(w).delta
    assert abs(float((delta * other).mean() / delta.var())) < 0.1


def test_the_divisor_is_the_expected_batch_not_the_drawn_one():
    """Noise alone shows it: clients of 3 (all drawn), of 20 at B = 5 with whatever is drawn, and all at B = 0."""
    for sizes, batch_size, expected in (([3], 5, 3), ([20], 5, 5), ([20], 0, 20)):
        trainer, _, w = drawing(sizes, sigma=1.0, batch_size=batch_size)
        result = trainer.on((0,), 0).train(w)
        steps = int(result.steps)
        assert float(result.delta.std()) * expected / sqrt(steps) == pytest.approx(1, rel=0.05)


def test_one_example_moves_a_step_by_the_clip_at_most():
    """Neighbouring data: client 0 with one example more, the others drawn alike (q = 1 up to the divisor)."""
    make, clip = BATCHED["mlp"], 0.2
    few, w = images(), start_of(make)
    how = {"sigma": 0.0, "clip": clip, "optimizer": SGD(lr=1.0), "local_epochs": 1, "batch_size": 0}
    sums = []
    for n in (9, 10):
        trainer, _ = private(make, data=clients(few, sizes=[n, TOTAL - n]), **how)
        sums.append(trainer.on((0,), 0).train(w).delta * n)
    distance = float((sums[1] - sums[0]).norm())
    assert 0.5 * clip < distance <= clip


def test_a_correction_is_applied_to_what_is_private_already():
    make, seen = BATCHED["mlp"], []
    trainer, _ = private(make, sigma=1.0, local_epochs=1)
    w = start_of(make)

    def correct(g, v):
        seen.append(g.clone())
        return torch.zeros_like(g)

    assert not trainer.on((0, 2), 0).train(w, correct).delta.any()
    assert len(seen) == private_steps(SIZES[0], 1, 5)
    assert (seen[0].std(dim=1) > 0.9 * 0.5 / 5).all()  # noise of sigma C / B is in it


def test_training_twice_in_a_round_is_refused():
    trainer, _ = private(BATCHED["mlp"])
    local, w = trainer.on((0, 2), 0), start_of(BATCHED["mlp"])
    first = local.train(w)
    with pytest.raises(RuntimeError, match="a second time is not accounted"):
        local.train(first.w)
    again = trainer.on((0,), 0).train(w)  # a client of a block that failed, tried again: the same numbers
    assert torch.allclose(again.delta[0], first.delta[0], rtol=1e-9, atol=1e-12)


def test_global_generators_are_left_alone():
    trainer, _ = private(BATCHED["mlp"])
    before = torch.random.get_rng_state()
    trainer.on((0, 2), 0).train(start_of(BATCHED["mlp"]))
    assert torch.equal(torch.random.get_rng_state(), before)


def perceptron(middle):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), middle, nn.Linear(6, CLASSES))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (perceptron(nn.BatchNorm1d(6)), r"2 \(BatchNorm1d\) computes with statistics of a batch"),
        (perceptron(nn.Dropout(0.5)), "outputs depend on the others in its batch, or on random numbers"),
        (Centred, "outputs depend on the others in its batch, or on random numbers"),
    ],
    ids=["batch norm", "dropout", "centred"],
)
def test_models_without_a_gradient_of_each_example_are_refused(make, told):
    with pytest.raises(ValueError, match=told) as refused:
        private(make)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("clip", "sigma"), [(0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (1.0, -0.1), (1.0, float("nan"))]
)
def test_numbers_without_meaning_are_refused(clip, sigma):
    with pytest.raises(ValueError, match="should be"):
        private(BATCHED["mlp"], clip=clip, sigma=sigma)


def test_how_many_clients_at_once():
    assert private(BATCHED["mlp"], width=0)[0].width == 51  # 256 examples
    assert private(BATCHED["mlp"], width=0, batch_size=300)[0].width == 1
    assert private(BATCHED["mlp"], width=4)[0].width == 4
