"""FedAvg at world size 1: identities and closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.federation import federate
from fedddp.flat import flatten
from fedddp.models import ImportedModule
from fedddp.optim import SGD
from fedddp.tasks import Task
from tests.helpers.planes import planes
from tests.helpers.support import Recorder, assemble, client_states, few_digits, flat

SIZES = (7, 20, 1, 13)
WHOLE = {"local_epochs": 1, "batch_size": 0, "optimizer": {"lr": 0.1}}


class Normed(nn.Module):
    """A perceptron with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.body(x)


class Slope(nn.Module):
    """The residual of a line through the origin: x holds (feature, target)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x):
        return x[:, :1] * self.w - x[:, 1:]


class LeastSquares(Task):
    def loss(self, outputs, y):
        return outputs.squeeze(-1).square() / 2


class Failing:
    """A trainer whose clients fail where ``when(client, round)`` says."""

    def __init__(self, trainer, when):
        self.trainer, self.when, self.data, self.width = trainer, when, trainer.data, trainer.width

    def on(self, ids, round):
        if self.when(ids[0], round):
            raise RuntimeError("a broken disk")
        return self.trainer.on(ids, round)


LINE = torch.tensor([[1.0, 1.0], [2.0, -1.0], [0.5, 3.0], [1.5, 0.5], [-1.0, 2.0], [0.3, 0.3]], dtype=torch.float64)
LINE_SIZES, LR, EPOCHS = (1, 3, 2), 0.1, 3


def line(folder, **sections):
    """Three clients with 1, 3 and 2 points of a regression through the origin, full batches, three local steps."""
    points = Examples(LINE, torch.zeros(len(LINE), dtype=torch.long))
    client = {"local_epochs": EPOCHS, "batch_size": 0, "optimizer": {"lr": LR}, "precision": "float64"}
    dataset = Dataset(points, points, num_classes=1, mean=(0.0,), std=(1.0,))
    return assemble(folder, dataset, LINE_SIZES, task=LeastSquares(Slope, 1), client=client, **sections)


def pseudo_gradient(w, weights=LINE_SIZES):
    """w minus the weighted mean of w_k = w*_k + (1 - lr h_k)^E (w - w*_k), h_k = mean f^2, w*_k = mean f t / h_k."""
    moved = 0.0
    for points, weight in zip(LINE.split(LINE_SIZES), weights, strict=True):
        h, best = points[:, 0].square().mean(), (points[:, 0] * points[:, 1]).mean() / points[:, 0].square().mean()
        moved += weight * (best + (1 - LR * h) ** EPOCHS * (w - best)) / sum(weights)
    return w - moved


def trained_by_hand(f, w, round, ids):
    """Each client's model after training alone from ``w``, and its number of examples."""
    return [(f.trainer.on((k,), round).train(w).w[0], int(f.pipeline.sizes[k])) for k in ids]


def weighted(pairs):
    return sum(w * n for w, n in pairs) / sum(n for _, n in pairs)


@pytest.mark.parametrize(
    ("model", "precision", "tolerance"), [("cnn", "float32", 1e-6), ("mlp", "float64", 1e-12)], ids=["cnn", "mlp"]
)
@pytest.mark.parametrize("sum_", ["fast", "exact"])
def test_one_full_batch_step_of_everybody_is_a_step_of_centralized_sgd(tmp_path, model, precision, tolerance, sum_):
    """Real digits, clients of 7, 20, 1 and 13: the gradients' weighted mean is the gradient of the whole."""
    data = few_digits(sum(SIZES))
    f, server = assemble(
        tmp_path,
        data,
        SIZES,
        model={"name": model},
        client={**WHOLE, "precision": precision},
        aggregation={"sum": sum_},
        run={"rounds": 1},
    )
    module = f.trainer._task.model(0)
    assert torch.equal(flatten(module), server.w)
    nn.functional.cross_entropy(module(f.trainer.data.normalize(data.train.x)), data.train.y).backward()
    with torch.no_grad():
        for p in module.parameters():
            p -= 0.1 * p.grad
    w = federate(f, server).w
    assert (w - flatten(module)).abs().max() <= max(tolerance, 1e-10 if sum_ == "exact" else 0)
    assert (w - server.w).abs().max() > 1e-3


def test_the_closed_form_of_several_local_steps(tmp_path):
    """w_{t+1} = w_t - pseudo_gradient(w_t) is affine, w_T = A^T w_0 + B (1 - A^T) / (1 - A); float64."""
    f, server = line(tmp_path, run={"rounds": 5})
    b = -pseudo_gradient(0.0)
    a = 1 - pseudo_gradient(1.0) - b
    expected = a**5 * 2 + b * (1 - a**5) / (1 - a)
    assert federate(f, server).w.item() == pytest.approx(expected.item(), abs=1e-12)
    optimum = (LINE[:, 0] * LINE[:, 1]).sum() / LINE[:, 0].square().sum()
    assert abs(b / (1 - a) - optimum) > 0.01  # local steps settle beside the optimum of the whole: not one step each


@pytest.mark.parametrize("nesterov", [False, True])
def test_server_momentum_is_the_recursion(tmp_path, nesterov):
    optimizer = {"lr": 0.5, "momentum": 0.8, "nesterov": nesterov}
    f, server = line(tmp_path, run={"rounds": 4}, algorithm={"server_optimizer": optimizer})
    w, v = 2.0, 0.0
    for _ in range(4):
        g = pseudo_gradient(w)
        v = 0.8 * v + g
        w = w - 0.5 * (g + 0.8 * v if nesterov else v)
    server = federate(f, server)
    assert server.w.item() == pytest.approx(float(w), abs=1e-12)
    assert server.extra["momentum"].item() == pytest.approx(float(v), abs=1e-12)


def test_batch_norm_statistics_are_averaged_whatever_the_server_optimizer(tmp_path):
    """Two rounds, so that a momentum on the statistics would show."""
    sizes = (7, 20, 3)
    f, server = assemble(
        tmp_path,
        few_digits(30),
        sizes,
        model=ImportedModule("tests:Normed", Normed),
        client={"local_epochs": 2, "batch_size": 5, "optimizer": {"lr": 0.1}},
        algorithm={"server_optimizer": {"lr": 0.5, "momentum": 0.9}},
        run={"rounds": 2},
    )
    p = server.num_trainable
    assert p == server.w.numel() - 16
    w, v = server.w, torch.zeros(p)
    for t in range(2):
        mean = weighted(trained_by_hand(f, w, t, range(3)))
        v = 0.9 * v + (w - mean)[:p]
        assert (mean - w)[p:].abs().max() > 0.01
        w = torch.cat([w[:p] - 0.5 * v, mean[p:]])
    server = federate(f, server)
    assert (server.w - w).abs().max() <= 1e-5  # statistics near 1, float32, two rounds of amplified roundings
    assert server.extra["momentum"].shape == (p,)


def test_uniform_weighting_is_the_plain_mean(tmp_path):
    f, server = line(tmp_path, run={"rounds": 1}, algorithm={"weighting": "uniform"})
    expected = 2 - pseudo_gradient(2.0, weights=(1, 1, 1))
    assert federate(f, server).w.item() == pytest.approx(float(expected), abs=1e-12)
    assert abs(float(expected - (2 - pseudo_gradient(2.0)))) > 0.01


def test_when_all_clients_fail_the_round_passes_and_the_model_stays(tmp_path, logged):
    """Round 2 of 3 fails for everybody: neither the model nor the momentum moves, and the third goes on from there."""
    sink = Recorder()
    sections = {"algorithm": {"server_optimizer": {"lr": 1.0, "momentum": 0.8}}, "run": {"rounds": 3}}
    f, server = line(tmp_path, sinks=[sink], **sections)
    f = replace(f, trainer=Failing(f.trainer, lambda client, t: t == 1))
    first = federate(f.until(1), server)
    second = federate(f.until(2), first)
    assert torch.equal(second.w, first.w)
    assert torch.equal(second.extra["momentum"], first.extra["momentum"])
    assert second.round == 2
    v = pseudo_gradient(2.0)
    expected = 2 - v - (0.8 * v + pseudo_gradient(2 - v))
    assert federate(f, second).w.item() == pytest.approx(float(expected), abs=1e-12)
    told = [(r.metrics["round"], r.metrics["participants"], r.metrics["failures"]) for r in sink.records]
    assert told == [(1, 3, 0), (2, 0, 3), (3, 3, 0)]
    assert sink.records[1].metrics["train_loss"] is None
    assert len(logged) == 1
    assert f.telemetry.summary()["failures"] == {"RuntimeError: a broken disk": 3}


@pytest.mark.parametrize(
    ("population", "size", "until"),
    [(3, None, 1), (40, 10, 1), (40, 4, 3), (40, 1, 10), (1, None, 1), (12, 6, 2)],
)
def test_a_run_ends_when_all_clients_tried_fail(tmp_path, logged, population, size, until):
    """After the first round of 10 clients, or of all there are; small cohorts are tried until there were as many."""
    f, server = assemble(tmp_path, few_digits(population), [1] * population, cohort={"size": size}, run={"rounds": 30})
    f = replace(f, trainer=Failing(f.trainer, lambda client, t: True))
    assert federate(f, server).round == until
    assert f.telemetry.nothing_learned
    assert len(logged) == until


def test_a_first_round_that_fails_in_part_or_for_a_small_cohort_does_not_end_the_run(tmp_path, logged):
    f, server = line(tmp_path, run={"rounds": 3})
    some = replace(f, trainer=Failing(f.trainer, lambda client, t: t == 0 and client != 2))
    assert federate(some, server).round == 3
    f, server = assemble(tmp_path, few_digits(40), [1] * 40, cohort={"size": 4}, run={"rounds": 3})
    first = replace(f, trainer=Failing(f.trainer, lambda client, t: t == 0))
    assert federate(first, server).round == 3


def test_a_failing_client_is_left_out_of_the_mean(tmp_path, logged):
    f, server = line(tmp_path, run={"rounds": 1})
    f = replace(f, trainer=Failing(f.trainer, lambda client, t: client == 1))
    expected = 2 - pseudo_gradient(2.0, weights=(1, 0, 2))
    assert federate(f, server).w.item() == pytest.approx(float(expected), abs=1e-12)
    assert logged == ["round 1: client 1 failed; its update is ignored: RuntimeError: a broken disk"]


def partial(folder, **run):
    """Six clients of which three take part, told apart by their sizes."""
    sink = Recorder()
    f, server = assemble(
        folder,
        few_digits(27),
        (2, 3, 4, 5, 6, 7),
        model={"name": "mlp", "hidden": 6},
        cohort={"fraction": 0.5},
        run={"rounds": 4, **run},
        sinks=[sink],
    )
    return f, server, sink


def test_partial_participation_draws_the_same_cohorts_again(tmp_path):
    f, server, sink = partial(tmp_path)
    final = federate(f, server)
    drawn = [tuple(record.report.examples.tolist()) for record in sink.records]
    assert drawn == [tuple(k + 2 for k in f.sampler.cohort(t).ids) for t in range(4)]
    assert all(len(sizes) == 3 for sizes in drawn)
    assert len(set(drawn)) > 1
    again, start, sink = partial(tmp_path)
    half = federate(again.until(2), start)
    assert torch.equal(federate(again, half).w, final.w)
    assert [tuple(record.report.examples.tolist()) for record in sink.records] == drawn
    other, start, sink = partial(tmp_path, seed=1)
    federate(other, start)
    assert [tuple(record.report.examples.tolist()) for record in sink.records] != drawn


def test_the_mean_is_over_the_cohort(tmp_path):
    """Not over the population: absent clients do not hold the model back."""
    f, server, _ = partial(tmp_path)
    expected = weighted(trained_by_hand(f, server.w, 0, f.sampler.cohort(0).ids))
    assert (federate(f.until(1), server).w - expected).abs().max() <= 1e-6


def test_a_client_would_deploy_the_servers_model(tmp_path):
    f, server = line(tmp_path)
    assert f.algorithm.personal_params(server, client_states(f, (1,), server)) is server.w
    assert f.algorithm.vectors(flat(7)) == {"delta": 7}
    assert f.algorithm.server_optimizer == SGD(lr=1.0)


def test_the_state_that_a_round_starts_from_is_not_changed(tmp_path):
    """States are passed, not kept: the old one must still be there for a checkpoint that is being written."""
    f, server = line(tmp_path, run={"rounds": 1}, algorithm={"server_optimizer": {"momentum": 0.8}})
    w, momentum = server.w.clone(), server.extra["momentum"].clone()
    federate(f, server)
    assert torch.equal(server.w, w)
    assert torch.equal(server.extra["momentum"], momentum)


def test_a_subclass_of_algorithm_that_declares_nothing_trains(tmp_path):
    names = ("tests.plugins.own_algorithm:Bare", "fedavg")
    own, built_in = (planes(tmp_path / n[-4:], run={"rounds": 2}, algorithm={"name": n}) for n in names)
    assert torch.allclose(federate(*own).w, federate(*built_in).w, rtol=1e-12)
