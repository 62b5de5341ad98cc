"""Every algorithm with one model against an independent reference: the paper's pseudocode as a plain loop in float64.

Five rounds, three of six unequal clients a round, two epochs of minibatches; the server's model agrees to 1e-12 after
each of them, clients trained one by one and two at once. Algorithms with personal models: test_references_personal.py.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.reference import CLIENTS, DATA, HEAVY, LR, WEIGHTS, Run, assert_same, mean, normalised


def compare(run, expected):
    """Round by round; and the rounds did something."""
    for server, w in zip(run.states(), expected, strict=True):
        assert_same(server.w, w)
    assert (run.server.w - run.start).abs().max() > 1e-2


@pytest.fixture(params=[1, 2], ids=["one by one", "two at once"])
def width(request):
    return request.param


# -- servers' steps, on Delta = the mean of w_k - w -----------------------------------------------------------------


def plain(lr=1.0):
    return lambda w, delta, memory: (w + lr * delta, memory)


def hsu(beta, lr=1.0):
    """FedAvgM: v <- beta v + Delta, w <- w + lr v."""

    def step(w, delta, v):
        v = beta * (0.0 if v is None else v) + delta
        return w + lr * v, v

    return step


def douillard(beta, lr):
    """DiLoCo's outer step: Nesterov momentum as torch.optim has it."""

    def step(w, delta, v):
        v = beta * (0.0 if v is None else v) + delta
        return w + lr * (delta + beta * v), v

    return step


def reddi(name, eta, tau, beta1=0.9, beta2=0.99):
    """Adaptive federated optimization, Algorithm 2, with v_{-1} = tau^2 and m_0 = 0."""

    def step(w, delta, memory):
        m, v = memory or (torch.zeros_like(w), torch.full_like(w, tau**2))
        m = beta1 * m + (1 - beta1) * delta
        squared = delta**2
        if name == "adagrad":
            v = v + squared
        elif name == "yogi":
            v = v - (1 - beta2) * squared * torch.sign(v - squared)
        else:
            v = beta2 * v + (1 - beta2) * squared
        return w + eta * m / (v.sqrt() + tau), (m, v)

    return step


def of_torch(cls, **keys):
    """torch.optim's step with -Delta as the gradient."""

    def step(w, delta, memory):
        p, optimizer = memory or (torch.nn.Parameter(w.clone()), None)
        optimizer = optimizer or cls([p], **keys)
        p.grad = -delta
        optimizer.step()
        return p.detach().clone(), (p, optimizer)

    return step


ADAPTIVE = {"lr": 0.05, "eps": 1e-2, "initial_accumulator": 1e-4}
TORCH_ADAM = {"name": "adam", "lr": 0.05, "beta2": 0.99, "eps": 1e-8, "initial_accumulator": 0.0}
SERVERS = {
    "sgd": ({"name": "sgd", "lr": 1.0}, plain()),
    "sgd, lr": ({"name": "sgd", "lr": 0.5}, plain(0.5)),
    "FedAvgM": ({"name": "sgd", "lr": 1.0, "momentum": 0.7}, hsu(0.7)),
    "DiLoCo's": ({"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}, douillard(0.9, 0.7)),
    "FedAdam": (
        {"name": "adam", "beta1": 0.9, "beta2": 0.99, "bias_correction": False, **ADAPTIVE},
        reddi("adam", 0.05, 1e-2),
    ),
    "FedYogi": (
        {"name": "yogi", "beta1": 0.9, "beta2": 0.99, "bias_correction": False, **ADAPTIVE},
        reddi("yogi", 0.05, 1e-2),
    ),
    "FedAdagrad": ({"name": "adagrad", **ADAPTIVE}, reddi("adagrad", 0.05, 1e-2, beta1=0.0)),
    "Adam, corrected": (
        {**TORCH_ADAM, "bias_correction": True},
        of_torch(torch.optim.Adam, lr=0.05, betas=(0.9, 0.99)),
    ),
    "AdamW": (
        {**TORCH_ADAM, "name": "adamw", "bias_correction": True, "weight_decay": 0.1},
        of_torch(torch.optim.AdamW, lr=0.05, betas=(0.9, 0.99), weight_decay=0.1),
    ),
}


def averaged(run, weights, step, **how):
    """Algorithm 1 of McMahan et al. 2017 with a server's step; buffers, behind the parameters, are averaged."""
    w, memory, p = run.start, None, sum(part.numel() for part in run.make().parameters())
    for t, cohort in enumerate(run.cohorts):
        ends = {k: run.trained(k, t, w, **how)[0] for k in cohort}
        delta = mean(ends, weights) - w
        moved, memory = step(w[:p], delta[:p], memory)
        w = torch.cat([moved, w[p:] + delta[p:]])
        yield w


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", SERVERS)
def test_fedavg_with_every_servers_step(tmp_path, name, weighting, width):
    keys, step = SERVERS[name]
    run = Run(tmp_path, {"name": "fedavg", "weighting": weighting, "server_optimizer": keys}, width=width)
    assert len(set(run.cohorts)) > 2
    compare(run, averaged(run, WEIGHTS[weighting], step))


CLIENT_OPTIMIZERS = {
    "sgd": (HEAVY, lambda params: torch.optim.SGD(params, **HEAVY)),
    "nesterov": ({**HEAVY, "nesterov": True}, lambda params: torch.optim.SGD(params, **HEAVY, nesterov=True)),
    "adam": ({"name": "adam", "lr": 0.01}, lambda params: torch.optim.Adam(params, lr=0.01)),
    "adamw": (
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    ),
    "adagrad": ({"name": "adagrad", "lr": 0.05}, lambda params: torch.optim.Adagrad(params, lr=0.05)),
}


@pytest.mark.parametrize("name", CLIENT_OPTIMIZERS)
def test_fedavg_with_every_clients_optimizer(tmp_path, name, width):
    keys, optimizer = CLIENT_OPTIMIZERS[name]
    run = Run(tmp_path, {"name": "fedavg"}, optimizer=keys, width=width)
    compare(run, averaged(run, WEIGHTS["examples"], plain(), optimizer=optimizer))


def test_fedavgm_with_batch_norm_averages_its_statistics(tmp_path):
    algorithm = {"name": "fedavg", "server_optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.7}}
    run = Run(tmp_path, algorithm, make=normalised)
    compare(run, averaged(run, WEIGHTS["examples"], hsu(0.7)))


# -- clients' steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("optimizer", [{"lr": LR}, HEAVY], ids=["sgd", "momentum and decay"])
def test_fedprox(tmp_path, weighting, optimizer, width):
    """Li et al. 2020, Algorithm 2: h_k(w; w_t) = F_k(w) + mu / 2 |w - w_t|^2."""
    mu = 0.7
    run = Run(tmp_path, {"name": "fedprox", "mu": mu, "weighting": weighting}, optimizer=optimizer, width=width)

    def rounds(w):
        for t, cohort in enumerate(run.cohorts):

            def near(net, rows, w=w):
                pairs = zip(net.parameters(), run.net(w).parameters(), strict=True)
                return mu / 2 * sum((p - q).square().sum() for p, q in pairs)

            w = mean({k: run.trained(k, t, w, penalty=near)[0] for k in cohort}, WEIGHTS[weighting])
            yield w

    compare(run, rounds(run.start))


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("lr", [1.0, 0.6])
def test_scaffold(tmp_path, weighting, lr, width):
    """Karimireddy et al. 2020, Algorithm 1, option II; eta_g = lr; c + sum_S p_i (c_i+ - c_i), p_i = 1 / N there."""
    keys = {"name": "scaffold", "weighting": weighting, "server_optimizer": {"name": "sgd", "lr": lr}}
    run, weights = Run(tmp_path, keys, width=width), WEIGHTS[weighting]

    def rounds(x):
        c, own = torch.zeros_like(x), {i: torch.zeros_like(x) for i in CLIENTS}
        for t, cohort in enumerate(run.cohorts):
            dy, dc = {}, {}
            for i in cohort:
                y, steps = run.trained(i, t, x, correct=lambda g, y, i=i, c=c: g - own[i] + c)
                plus = own[i] - c + (x - y) / (steps * LR)
                dy[i], dc[i], own[i] = y - x, plus - own[i], plus
            x = x + lr * mean(dy, weights)
            c = c + sum(weights[i] * dc[i] for i in cohort) / sum(weights.values())
            yield x

    compare(run, rounds(run.start))


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_feddyn(tmp_path, weighting, width):
    """Acar et al. 2021, Algorithm 1; h - alpha sum_P p_k (theta_k - theta), p_k = 1 / m there."""
    alpha = 0.3
    run = Run(tmp_path, {"name": "feddyn", "alpha": alpha, "weighting": weighting}, width=width)
    weights = WEIGHTS[weighting]

    def rounds(theta):
        h, grads = torch.zeros_like(theta), {k: torch.zeros_like(theta) for k in CLIENTS}
        for t, cohort in enumerate(run.cohorts):
            ends = {}
            for k in cohort:
                ends[k], _ = run.trained(
                    k, t, theta, correct=lambda g, w, k=k, theta=theta: g - grads[k] + alpha * (w - theta)
                )
                grads[k] = grads[k] - alpha * (ends[k] - theta)
            h = h - alpha * sum(weights[k] * (ends[k] - theta) for k in cohort) / sum(weights.values())
            theta = mean(ends, weights) - h / alpha
            yield theta

    compare(run, rounds(run.start))


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fednova(tmp_path, weighting, momentum, width):
    """Wang et al. 2020, eq. 6: a_k is 1, ..., 1 for SGD, (1 - rho^{tau - j}) / (1 - rho) for momentum rho."""
    optimizer = {"lr": LR, "momentum": momentum}
    run = Run(tmp_path, {"name": "fednova", "weighting": weighting}, optimizer=optimizer, width=width)
    weights, taken = WEIGHTS[weighting], set()

    def rounds(w):
        for t, cohort in enumerate(run.cohorts):
            norms, directions = {}, {}
            for k in cohort:
                end, tau = run.trained(k, t, w)
                norms[k] = sum((1 - momentum ** (tau - j)) / (1 - momentum) for j in range(tau))
                directions[k] = (w - end) / (LR * norms[k])
                taken.add(tau)
            w = w - LR * mean(norms, weights) * mean(directions, weights)
            yield w

    compare(run, rounds(run.start))
    assert len(taken) > 2


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize(("q", "lipschitz"), [(1.0, 0.0), (0.5, 0.0), (2.0, 20.0)])
def test_qffl(tmp_path, weighting, q, lipschitz, width):
    """Li et al. 2020, Algorithm 2, with 1e-10 added to a loss as in the authors' program; L = 1 / eta unless given."""
    keys = {"name": "qffl", "q": q, "lipschitz": lipschitz, "weighting": weighting}
    run, weights, big_l = Run(tmp_path, keys, width=width), WEIGHTS[weighting], lipschitz or 1 / LR

    def rounds(w):
        for t, cohort in enumerate(run.cohorts):
            deltas, hs = {}, {}
            for k in cohort:
                loss, moved = run.loss(k, w) + 1e-10, big_l * (w - run.trained(k, t, w)[0])
                deltas[k] = loss**q * moved
                hs[k] = q * loss ** (q - 1) * moved.square().sum() + big_l * loss**q
            w = w - sum(weights[k] * deltas[k] for k in cohort) / sum(weights[k] * hs[k] for k in cohort)
            yield w

    compare(run, rounds(run.start))


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_moon(tmp_path, weighting):
    """Li, He, Song 2021, Algorithm 1, without a projection head: z is what the last layer gets."""
    mu, tau = 2.0, 0.4
    keys = {"name": "moon", "mu": mu, "temperature": tau, "weighting": weighting}
    run = Run(tmp_path, keys)

    def rounds(w):
        previous = dict.fromkeys(CLIENTS, w)
        for t, cohort in enumerate(run.cohorts):
            ends = {}
            for k in cohort:
                glob, last = run.net(w)[:-1], run.net(previous[k])[:-1]

                def contrast(net, rows, k=k, glob=glob, last=last):
                    x = DATA[k][0][rows]
                    near = torch.exp(F.cosine_similarity(net[:-1](x), glob(x).detach()) / tau)
                    far = torch.exp(F.cosine_similarity(net[:-1](x), last(x).detach()) / tau)
                    return -mu * torch.log(near / (near + far)).mean()

                ends[k], _ = run.trained(k, t, w, penalty=contrast)
            previous |= ends
            w = mean(ends, WEIGHTS[weighting])
            yield w

    compare(run, rounds(run.start))
