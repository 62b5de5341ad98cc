"""fedddp.clients.sequential: local training is the loop that everyone writes, on views of one vector."""

import numpy as np
import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, sequential
from fedddp.data import ClientData, Examples, Partition, plan
from fedddp.flat import flatten
from fedddp.optim import SGD
from fedddp.tasks import Task
from tests.helpers.zoo import training

SIZES = [23, 0, 9, 10, 1, 1]
SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Linear(12, 10))


def with_dropout():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Dropout(0.5), nn.Linear(12, 10))


def with_batch_norm():
    """Statistics as plain averages, which depend on the count of batches, a buffer outside the vector."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12, momentum=None), nn.Linear(12, 10))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 3, 2), nn.Flatten(), nn.Linear(72, 10))


class Viewing(nn.Module):
    """It takes for granted how its features lie in memory."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 2, 5, 4), nn.Linear(72, 10)

    def forward(self, x):
        return self.head(self.features(x).view(-1, 72))


@pytest.fixture
def trainer(digits):
    """``trainer(make_model, dtype, ...)`` over clients of 23, 0, 9 and 10 digits, and two with one and the same."""
    few = Examples(digits.train.x[:42], digits.train.y[:42])
    order = torch.cat([torch.arange(42), torch.tensor([41, 41])])
    partition = Partition.dealt(order.numpy(), np.array(SIZES))

    def make(model=mlp, dtype=torch.float32, *, epochs=2, batch_size=5, settings=None):
        normalize = digits.normalizer(dtype)
        spec = training(SGD(**(settings or SETTINGS)), local_epochs=epochs, batch_size=batch_size, seed=3, dtype=dtype)
        return SequentialTrainer(Task(model, 10), ClientData(few, partition, normalize), spec)

    return make


def start(trainer):
    return trainer._task.initial_params(3).to(trainer.spec.dtype)


def by_hand(trainer, client, round, dtype, penalty=0.0):
    """The same batches through autograd and torch.optim; (w, mean loss, share of right answers) of what was seen."""
    module = trainer._task.model(3).to(dtype).train()
    first = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), **SETTINGS)
    x, y = trainer.data.examples(client)
    p = plan([len(y)], [client], round, epochs=2, batch_size=5, seed=3)
    losses, hits = [], []
    for t in range(int(p.steps[0])):
        rows = p.index[0, t][p.mask[0, t]]
        outputs = module(trainer.data.normalize(x[rows]))
        each = nn.functional.cross_entropy(outputs, y[rows], reduction="none")
        distance = sum((a - b).square().sum() for a, b in zip(module.parameters(), first, strict=True))
        optimizer.zero_grad()
        (each.mean() + penalty / 2 * distance).backward()
        optimizer.step()
        losses += each.tolist()
        hits += (outputs.argmax(dim=1) == y[rows]).tolist()
    return flatten(module), sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("client", [0, 2, 3])
def test_training_is_the_hand_written_loop(trainer, client, dtype, tolerance):
    """23, 9 and 10 examples in batches of 5, two epochs: only the order of roundings may differ."""
    ours = trainer(dtype=dtype)
    w, loss, accuracy = by_hand(ours, client, 7, dtype)
    result = ours.on((client,), 7).train(start(ours))
    assert (result.w[0] - w).abs().max() <= tolerance
    assert (w - start(ours)).abs().max() > 0.01
    assert result.loss.item() == pytest.approx(loss, abs=tolerance)
    assert result.accuracy.item() == accuracy
    assert result.steps.tolist() == [2 * -(-SIZES[client] // 5)]
    assert result.w.shape == (1, ours.spec.dim)


@pytest.mark.parametrize(("model", "innermost"), [(convolutional, True), (Viewing, False)])
def test_images_lie_as_convolutions_like_them_if_the_model_lets_them(trainer, model, innermost):
    ours = trainer(model, torch.float64)
    w, loss, accuracy = by_hand(ours, 2, 4, torch.float64)
    result = ours.on((2,), 4).train(start(ours))
    assert ours._innermost is innermost
    torch.testing.assert_close(result.w[0], w, rtol=0, atol=1e-12)
    assert (float(result.loss), float(result.accuracy)) == (pytest.approx(loss, abs=1e-12), accuracy)


def test_statistics_of_batch_norm_are_those_of_the_hand_written_loop(trainer):
    ours = trainer(with_batch_norm)
    w, _, _ = by_hand(ours, 3, 0, torch.float32)
    result = ours.on((3,), 0).train(start(ours)).w[0]
    assert (result - w).abs().max() <= 1e-5  # a batch's deviation divides: roundings of 1e-7 grow
    assert (result[ours.spec.num_trainable :] - start(ours)[ours.spec.num_trainable :]).abs().max() > 0.01


def test_an_identity_correction_changes_no_bit(trainer):
    ours = trainer()
    plain = ours.on((0,), 1).train(start(ours))
    corrected = ours.on((0,), 1).train(start(ours), lambda g, w: g)
    assert torch.equal(corrected.w, plain.w)
    assert torch.equal(corrected.loss, plain.loss)


def test_a_correction_sees_the_gradient_and_the_weights_of_its_step(trainer):
    """Adding mu (w - w_0) to the gradient is training with the penalty mu/2 |w - w_0|^2."""
    ours = trainer(dtype=torch.float64)
    w0, seen = start(ours), []

    def proximal(g, w):
        seen.append((tuple(g.shape), tuple(w.shape)))
        return g + 0.7 * (w - w0)

    result = ours.on((0,), 7).train(w0, proximal)
    assert (result.w[0] - by_hand(ours, 0, 7, torch.float64, penalty=0.7)[0]).abs().max() <= 1e-12
    assert (result.w - ours.on((0,), 7).train(w0).w).abs().max() > 0.001
    assert seen == [((1, ours.spec.num_trainable),) * 2] * 10


@pytest.mark.parametrize("model", [mlp, with_dropout, with_batch_norm])
def test_a_result_depends_on_seed_round_and_client_only(trainer, model):
    """Not on what was trained before, on the global generators, or on the trainer's other uses."""
    ours = trainer(model, batch_size=10)
    first = ours.on((2,), 4).train(start(ours)).w
    torch.rand(5)
    ours.on((0,), 4).train(start(ours) + 1)
    again = ours.on((2,), 4)
    assert torch.equal(again.train(start(ours)).w, first)
    assert torch.equal(again.train(start(ours)).w, first)
    assert torch.equal(trainer(model, batch_size=10).on((2,), 4).train(start(ours)).w, first)


def test_dropout_differs_between_rounds_and_clients(trainer):
    """One digit, whose place in a batch cannot differ: only the dropped units can."""
    ours = trainer(with_dropout, epochs=1, batch_size=0)
    w0 = start(ours)
    first, later, twin = (ours.on((k,), t).train(w0).w for k, t in ((4, 0), (4, 1), (5, 0)))
    assert (first - later).abs().max() > 0.001
    assert (first - twin).abs().max() > 0.001
    plain = trainer(epochs=1, batch_size=0)
    first, later, twin = (plain.on((k,), t).train(w0).w for k, t in ((4, 0), (4, 1), (5, 0)))
    assert torch.equal(first, later)
    assert torch.equal(first, twin)


def test_the_global_generator_and_the_start_are_left_alone(trainer):
    ours = trainer(with_dropout)
    w0, state = start(ours), torch.get_rng_state()
    before = w0.clone()
    result = ours.on((0,), 0).train(w0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(w0, before)
    kept = result.w.clone()
    ours.on((2,), 0).train(w0)
    assert torch.equal(result.w, kept)


def test_clients_may_start_apart(trainer):
    ours = trainer()
    w = start(ours) * 0.5
    assert torch.equal(ours.on((0,), 0).train(w.unsqueeze(0)).w, ours.on((0,), 0).train(w).w)


def test_an_empty_client_returns_what_it_was_given(trainer):
    ours = trainer(with_batch_norm)
    local = ours.on((1,), 0)
    result = local.train(start(ours))
    assert local.num_examples.tolist() == [0]
    assert torch.equal(result.w[0], start(ours))
    assert (result.steps.tolist(), result.loss.tolist(), result.accuracy.tolist()) == ([0], [0], [0])


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_how_many_rows_are_normalised_at_once_changes_no_bit(trainer, rows, monkeypatch):
    ours = trainer()
    result = ours.on((0,), 0).train(start(ours))
    monkeypatch.setattr(sequential, "NUMBERS_AT_ONCE", rows * ours.data.examples(0)[0][0].numel())
    again = ours.on((0,), 0).train(start(ours))
    assert torch.equal(again.w, result.w)
    assert again.loss.item() == pytest.approx(result.loss.item(), abs=1e-6)
    assert again.accuracy.item() == result.accuracy.item()


def test_a_clients_loss_is_the_mean_over_its_own_examples(trainer, monkeypatch):
    """At one w or at one for each; in pieces; 0 for a client without examples; in evaluation mode."""
    monkeypatch.setattr("fedddp.clients.local.NUMBERS_AT_ONCE", 784 * 4)
    ours = trainer(with_dropout, dtype=torch.float64)
    w = start(ours)
    module = with_dropout().double().eval()
    nn.utils.vector_to_parameters(w, module.parameters())
    x, y = ours.data.examples(0)
    expected = nn.functional.cross_entropy(module(ours.data.normalize(x)), y).item()
    losses = ours.on((0, 1), 0).loss(w)
    assert losses.tolist() == pytest.approx([expected, 0.0], abs=1e-12)
    apart = ours.on((0, 2), 0).loss(torch.stack([w, 2 * w]))
    assert apart[0] == losses[0]
    assert apart[1] != ours.on((2,), 0).loss(w)[0]


def test_an_algorithm_may_ask_for_other_epochs(trainer):
    one, two = trainer(epochs=1), trainer(epochs=2)
    w = start(one)
    asked, usual = one.on((0,), 1).train(w, epochs=2), two.on((0,), 1).train(w)
    assert torch.equal(asked.delta, usual.delta)
    assert asked.steps.tolist() == [10]
    assert asked.loss.tolist() == usual.loss.tolist()
