"""Algorithms against the equations of their papers, written out on quadratics."""

from dataclasses import replace

import pytest
import torch

from fedddp.algorithms import QFFL
from fedddp.federation import federate
from fedddp.types import Cohort, Mean, ServerState
from tests.helpers.quadratics import (
    LR,
    SIZES,
    UNIFORM,
    Drawn,
    assert_near,
    descended,
    final,
    gradient,
    loss,
    mean,
    optimum,
    quadratics,
    start,
    trained,
)
from tests.helpers.support import client_states, flat

pytestmark = pytest.mark.slow


def test_fedprox_is_the_recursion(tmp_path):
    w = start()
    for _ in range(3):
        w = mean([descended(k, w, extra=lambda v, w=w: 0.5 * (v - w)) for k in range(3)], SIZES)
    assert_near(final(tmp_path, 3, {"name": "fedprox", "mu": 0.5}), w)


SERVERS = {
    "fedavgm": {"name": "sgd", "lr": 1.0, "momentum": 0.9},
    "diloco": {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
    "fedadam": {"name": "adam"},
    "fedyogi": {"name": "yogi"},
    "fedadagrad": {"name": "adagrad"},
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_optimizer_is_the_papers_recursion(tmp_path, name):
    """On Delta = mean(w_k) - w: Reddi et al. 2021, Algorithm 2, by its name alone (lr 0.01, beta 0.9 and 0.99,
    tau 1e-3, v_0 = tau^2); Hsu et al. 2019; Douillard et al. 2023, Algorithm 1."""
    w, m, v = start(), torch.zeros(2).double(), torch.full((2,), 1e-6).double()
    for _ in range(4):
        moved = mean([descended(k, w) for k in range(3)], SIZES) - w
        if name in ("fedavgm", "diloco"):
            m = 0.9 * m + moved
            w = w + (0.7 * (moved + 0.9 * m) if name == "diloco" else m)
            continue
        m = moved if name == "fedadagrad" else 0.9 * m + 0.1 * moved
        sq = moved**2
        v = {"fedadam": 0.99 * v + 0.01 * sq, "fedyogi": v - 0.01 * sq * (v - sq).sign(), "fedadagrad": v + sq}[name]
        w = w + 0.01 * m / (v.sqrt() + 1e-3)
    assert_near(final(tmp_path, 4, {"server_optimizer": SERVERS[name]}), w)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_scaffold_is_the_recursion(tmp_path, weighting):
    weights = UNIFORM if weighting == "uniform" else SIZES
    x, c, controls = start(), 0.0, [torch.zeros(2).double()] * 3
    for _ in range(4):
        ys = [descended(k, x, extra=lambda _, k=k, c=c, own=controls: c - own[k]) for k in range(3)]
        news = [c_k - c + (x - y) / (5 * LR) for c_k, y in zip(controls, ys, strict=True)]
        c = c + mean([new - old for new, old in zip(news, controls, strict=True)], weights)
        x, controls = mean(ys, weights), news
    server, f = trained(tmp_path, 4, {"name": "scaffold", "weighting": weighting})
    assert_near(server.w, x)
    assert_near(server.extra["control"], c)
    assert_near(c, mean(controls, weights))
    assert_near(client_states(f, (2,), server)["control"][0], controls[2])


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.8, "weight_decay": 0.1}, {"name": "adam", "lr": 0.05}])
def test_scaffolds_option_1_remembers_the_gradient_at_the_rounds_model(tmp_path, optimizer):
    """c_i+ = g_i(x), whatever the client's optimizer; under plain SGD the recursion by hand."""
    x, c, controls = start(), torch.zeros(2).double(), [torch.zeros(2).double()] * 3
    table = {"name": "scaffold", "option": 1}
    server, f = trained(tmp_path, 4, table, client={"optimizer": {"lr": LR, **optimizer}})
    before, _ = trained(tmp_path / "before", 3, table, client={"optimizer": {"lr": LR, **optimizer}})
    for k in range(3):
        assert_near(client_states(f, (k,), server)["control"][0], gradient(k, before.w))
    assert_near(server.extra["control"], mean([gradient(k, before.w) for k in range(3)], UNIFORM))
    for _ in range(4 if not optimizer else 0):
        ys = [descended(k, x, extra=lambda _, k=k, c=c, own=controls: c - own[k]) for k in range(3)]
        controls = [gradient(k, x) for k in range(3)]
        x, c = mean(ys, UNIFORM), mean(controls, UNIFORM)
    if not optimizer:
        assert_near(server.w, x)


def test_the_gradient_of_a_block_is_the_mean_over_each_clients_batches(tmp_path):
    """Of its own examples however they are batched, here equal batches; the model and its state stay where they are."""
    f, server = quadratics(tmp_path, client={"batch_size": 2, "local_epochs": 3, "clip_norm": 1e-3})
    for k in (0, 1):
        assert_near(f.trainer.on((k,), 0).gradient(server.w)[0], gradient(k, server.w))


def test_feddyn_with_alpha_by_size_is_the_authors_loop(tmp_path):
    """alpha_k = alpha / (n_k N / n); the cloud model is the plain mean plus that of all sums of moves."""
    alpha, sizes, w = 0.5, torch.tensor(SIZES).double(), start()
    share, moves = sizes / sizes.mean(), torch.zeros(3, 2).double()
    f, server = quadratics(
        tmp_path,
        algorithm={"name": "feddyn", "alpha": alpha, "alpha_by_size": True},
        cohort={"size": 2},
        run={"rounds": 6},
    )
    for t in range(6):
        ids = f.sampler.cohort(t).ids
        ends = []
        for k in ids:
            pull = lambda v, w=w, k=k: alpha / share[k] * (v - w + moves[k])  # noqa: E731
            ends.append(descended(k, w, extra=pull))
            moves[k] += ends[-1] - w
        w = sum(ends) / len(ends) + moves.mean(dim=0)
    assert_near(federate(f, server).w, w)


def test_feddyn_with_alpha_by_size_reaches_the_optimum_of_the_examples(tmp_path):
    table = {"name": "feddyn", "alpha": 0.5, "alpha_by_size": True}
    assert_near(final(tmp_path, 150, table, cohort={"size": 2}), optimum(), 1e-4)
    assert (optimum() - optimum(UNIFORM)).abs().max() > 0.1


def test_feddyn_is_the_recursion(tmp_path):
    alpha, w, h, grads = 0.5, start(), 0.0, [torch.zeros(2).double()] * 3
    for _ in range(4):
        ends = [descended(k, w, extra=lambda v, k=k, w=w, own=grads: alpha * (v - w) - own[k]) for k in range(3)]
        grads = [g - alpha * (end - w) for g, end in zip(grads, ends, strict=True)]
        h = h - alpha * (mean(ends, UNIFORM) - w)
        w = mean(ends, UNIFORM) - h / alpha
    assert_near(final(tmp_path, 4, {"name": "feddyn", "alpha": alpha}), w)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_is_the_recursion(tmp_path, momentum):
    """Batches of 2: clients of 2, 4 and 1 examples take 1, 2 and 1 steps an epoch; here of one batch each, 1 to 5."""
    taken, w = (1, 5, 3), start()
    f, server = quadratics(
        tmp_path,
        algorithm={"name": "fednova"},
        client={"local_steps": 5, "optimizer": {"lr": LR, "momentum": momentum}},
        run={"rounds": 3},
    )
    f.trainer._training = replace(f.trainer._training, work=Drawn(taken))
    once = {tau: sum((1 - momentum**j) / (1 - momentum) for j in range(1, tau + 1)) for tau in taken}
    for _ in range(3):
        ends = [descended(k, w, steps, momentum=momentum) for k, steps in enumerate(taken)]
        directions = [(end - w) / once[steps] for end, steps in zip(ends, taken, strict=True)]
        w = w + mean([once[steps] for steps in taken], SIZES) * mean(directions, SIZES)
    assert_near(federate(f, server).w, w)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_fednova_with_a_proximal_term_is_the_recursion(tmp_path, mu):
    """|a|_1 from the gradients' weights (1 - eta mu)^(steps left), added up one by one; tau_eff: mean of the tau."""
    taken, w = (1, 5, 3), start()
    algorithm = {"name": "fednova", "mu": mu}
    f, server = quadratics(tmp_path, algorithm=algorithm, client={"local_steps": 5}, run={"rounds": 3})
    f.trainer._training = replace(f.trainer._training, work=Drawn(taken))
    for _ in range(3):
        ends = [descended(k, w, n, extra=lambda v, w=w: mu * (v - w)) for k, n in enumerate(taken)]
        lengths = [sum((1 - LR * mu) ** j for j in range(n)) for n in taken]
        directions = [(end - w) / length for end, length in zip(ends, lengths, strict=True)]
        w = w + mean(taken, SIZES) * mean(directions, SIZES)
    assert_near(federate(f, server).w, w)


def test_fednova_without_a_pull_and_with_hardly_any_agree(tmp_path):
    client = {"client": {"local_epochs": 4, "batch_size": 2}}
    near, plain = (final(tmp_path / str(mu), 3, {"name": "fednova", "mu": mu}, **client) for mu in (1e-9, 0.0))
    assert_near(near, plain, 1e-7)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("q", [0.5, 2.0])
def test_qffl_is_the_recursion(tmp_path, q, weighting):
    weights = UNIFORM if weighting == "uniform" else SIZES
    w, lipschitz = start(), 1 / LR
    for _ in range(3):
        moves = [lipschitz * (w - descended(k, w)) for k in range(3)]
        losses = [loss(k, w) for k in range(3)]
        hs = [q * f ** (q - 1) * m.square().sum() + lipschitz * f**q for f, m in zip(losses, moves, strict=True)]
        w = w - mean([f**q * m for f, m in zip(losses, moves, strict=True)], weights) / mean(hs, weights)
    table = {"name": "qffl", "q": q} | ({} if weighting == "uniform" else {"weighting": weighting})
    assert_near(final(tmp_path, 3, table), w, 1e-8)  # 1e-10 is added to each loss


def test_qffl_stays_where_every_loss_is_0():
    """F_k^q is 0 in floating point, and so is the sum of the h_k."""
    algorithm, server = QFFL(q=5.0), ServerState(torch.ones(3), flat(3))
    mean = Mean({"delta": torch.zeros(3), "h": torch.zeros(1)}, 1.0, 1, 1)
    assert torch.equal(algorithm.server_update(server, mean, Cohort(0, (0,), 1)).w, server.w)
