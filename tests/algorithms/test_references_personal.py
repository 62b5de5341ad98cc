"""Every algorithm with personal models against an independent reference, as in test_references.py.

Compared after each of five rounds: the server's model, and what each of the six clients would deploy.
"""

import pytest
import torch

from fedddp.algorithms import ADAPTED, ALGORITHMS
from tests.helpers.reference import (
    CLIENTS,
    DATA,
    EPOCHS,
    HEAVY,
    LR,
    WEIGHTS,
    Run,
    assert_same,
    batches,
    mean,
    normalised,
)

pytestmark = pytest.mark.slow


def compare(run, expected):
    """``expected``: the server's model and everybody's own, round by round."""
    for server, (w, own) in zip(run.states(), expected, strict=True):
        assert_same(server.w, w)
        assert_same(run.personal(), torch.stack([own[k] for k in CLIENTS]))
    assert (run.server.w - run.start).abs().max() > 1e-2
    spread = run.personal()
    assert (spread[0] - spread[1]).abs().max() > 1e-2


@pytest.fixture(params=[1, 2], ids=["one by one", "two at once"])
def width(request):
    return request.param


OPTIMIZERS = pytest.mark.parametrize("optimizer", [{"lr": LR}, HEAVY], ids=["sgd", "momentum and decay"])


@OPTIMIZERS
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("epochs", [0, 3])
def test_ditto(tmp_path, optimizer, weighting, epochs, width):
    """Li, Hu, Beirami, Smith 2021, Algorithm 1; v_k is w_t until client k first takes part."""
    lam = 0.4
    keys = {"name": "ditto", "lam": lam, "personal_epochs": epochs, "weighting": weighting}
    run = Run(tmp_path, keys, optimizer=optimizer, width=width)
    passes = {"epochs": epochs} if epochs else {}

    def rounds(w):
        v = {}
        for t, cohort in enumerate(run.cohorts):
            ends = {k: run.trained(k, t, w)[0] for k in cohort}
            for k in cohort:
                near = lambda g, x, w=w: g + lam * (x - w)  # noqa: E731
                v[k], _ = run.trained(k, t, v.get(k, w), correct=near, **passes)
            w = mean(ends, WEIGHTS[weighting])
            yield w, {k: v.get(k, w) for k in CLIENTS}

    compare(run, rounds(run.start))


@OPTIMIZERS
@pytest.mark.parametrize("alpha_lr", [0.0, 0.3])
def test_apfl(tmp_path, optimizer, alpha_lr, width):
    """Deng, Kamani, Mahdavi 2020, Algorithm 1, with its docstring's differences: w_t in the mixture during a round,
    and alpha_k changed after it, by its first gradient."""
    first = 0.4
    keys = {"name": "apfl", "alpha": first, "alpha_lr": alpha_lr, "weighting": "examples"}
    run = Run(tmp_path, keys, optimizer=optimizer, width=width)

    def rounds(w):
        v, alpha = {}, dict.fromkeys(CLIENTS, first)
        for t, cohort in enumerate(run.cohorts):
            ends = {k: run.trained(k, t, w)[0] for k in cohort}
            for k in cohort:
                own, a = v.get(k, w), alpha[k]
                slope = run.gradient(k, t, a * own + (1 - a) * w)
                alpha[k] = min(1.0, max(0.0, a - alpha_lr * float((own - w) @ slope)))
                v[k] = personal_descent(run, k, t, own, a, w, optimizer)
            w = mean(ends, WEIGHTS["examples"])
            yield w, {k: alpha[k] * v.get(k, w) + (1 - alpha[k]) * w for k in CLIENTS}
        moved[:] = [a for a in alpha.values() if a != first]

    moved = []
    compare(run, rounds(run.start))
    assert bool(moved) == bool(alpha_lr)


def personal_descent(run, k, t, v, a, w, keys):
    """torch.optim.SGD on v itself, through the mixture."""
    v = torch.nn.Parameter(v.clone())
    descent, shapes = torch.optim.SGD([v], **keys), [p.shape for p in run.make().parameters()]
    for rows in batches(k, t, EPOCHS):
        parts = (a * v + (1 - a) * w).split([shape.numel() for shape in shapes])
        w1, b1, w2, b2 = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        scores = torch.tanh(DATA[k][0][rows] @ w1.T + b1) @ w2.T + b2
        descent.zero_grad()
        torch.nn.functional.cross_entropy(scores, DATA[k][1][rows]).backward()
        descent.step()
    return v.detach()


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("clusters", [1, 3])
def test_ifca(tmp_path, weighting, clusters, width):
    """Ghosh et al. 2020, Algorithm 1, option II; the first models are given."""
    run = Run(tmp_path, {"name": "ifca", "clusters": clusters, "weighting": weighting}, width=width)
    weights, picks = WEIGHTS[weighting], dict.fromkeys(CLIENTS, 0)
    thetas = [run.start, *(run.extra[f"theta.{j}"] for j in range(1, clusters))]

    def rounds():
        for t, cohort in enumerate(run.cohorts):
            ends = {}
            for k in cohort:
                picks[k] = min(range(clusters), key=lambda j, k=k: float(run.loss(k, thetas[j])))
                ends[k], _ = run.trained(k, t, thetas[picks[k]])
            for j in range(clusters):
                mine = {k: end for k, end in ends.items() if picks[k] == j}
                thetas[j] = mean(mine, weights) if mine else thetas[j]
            yield list(thetas)

    for server, expected in zip(run.states(), rounds(), strict=True):
        for j, theta in enumerate(expected):
            assert_same(server.w if j == 0 else server.extra[f"theta.{j}"], theta)
        assert_same(run.personal(), torch.stack([expected[picks[k]] for k in CLIENTS]))
    assert len(set(picks.values())) > 1 or clusters == 1


# -- a part of the model that is each client's own ------------------------------------------------------------------

HEAD = (2, 3)  # weight and bias of the last of two layers
NORM = (2, 3, 6, 7)  # of the net with batch norm: scale and shift, and its statistics behind the parameters


def positions(run, which):
    """bool [D]: the entries of the tensors ``which``, parameters first, then statistics."""
    net = run.make()
    sizes = [p.numel() for p in net.parameters()] + [b.numel() for b in net.buffers() if b.is_floating_point()]
    return torch.cat([torch.full((n,), i in which) for i, n in enumerate(sizes)])


def together(run, private, weights, only=None, frozen=()):
    """Pillutla et al. 2022, Algorithm 1 ("FedSim"): both parts trained at once, the shared one averaged."""
    mine, still = positions(run, private), positions(run, frozen)
    w, own = run.start, {}
    for t, cohort in enumerate(run.cohorts):
        ends = {k: run.trained(k, t, torch.where(mine, own.get(k, w), w), only=only)[0] for k in cohort}
        own |= ends
        w = torch.where(mine | still, run.start, mean(ends, weights))
        yield w, {k: torch.where(mine, own.get(k, w), w) for k in CLIENTS}


@OPTIMIZERS
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_fedper(tmp_path, optimizer, weighting, width):
    """Arivazhagan et al. 2019, Algorithms 1 and 2: the last layer is private."""
    inner = {"name": "fedavg", "weighting": weighting}
    run = Run(tmp_path, {"name": "fedper", "inner": inner}, optimizer=optimizer, width=width)
    compare(run, together(run, HEAD, WEIGHTS[weighting]))


@OPTIMIZERS
def test_fedbn(tmp_path, optimizer):
    """Li et al. 2021, Algorithm 1: scale, shift and statistics of batch norm are private."""
    run = Run(tmp_path, {"name": "fedbn"}, make=normalised, optimizer=optimizer)
    compare(run, together(run, NORM, WEIGHTS["examples"]))


@OPTIMIZERS
def test_personal_with_something_frozen(tmp_path, optimizer, width):
    keys = {"name": "personal", "private": ["2.bias"], "frozen": ["0.bias"]}
    run = Run(tmp_path, keys, optimizer=optimizer, width=width)
    compare(run, together(run, (3,), WEIGHTS["examples"], only=(0, 2, 3), frozen=(1,)))


def test_scaffold_on_the_shared_part(tmp_path, width):
    """Corrections touch what is shared, and nothing else."""
    keys = {"name": "personal", "private": ["2.*"], "inner": {"name": "scaffold"}}
    run = Run(tmp_path, keys, width=width)
    mine = positions(run, HEAD)

    def rounds(x):
        c, held, own = torch.zeros_like(x), {i: torch.zeros_like(x) for i in CLIENTS}, {}
        for t, cohort in enumerate(run.cohorts):
            moves, changes = {}, {}
            for i in cohort:
                begin, shift = torch.where(mine, own.get(i, x), x), (c - held[i]).masked_fill(mine, 0.0)
                own[i], steps = run.trained(i, t, begin, correct=lambda g, y, shift=shift: g + shift)
                moves[i] = own[i] - x
                plus = held[i] - c + (x - own[i]) / (steps * LR)
                changes[i], held[i] = plus - held[i], plus
            x = torch.where(mine, x, x + mean(moves, WEIGHTS["uniform"]))
            c = c + sum(changes.values()) / len(CLIENTS)
            yield x, {k: torch.where(mine, own.get(k, x), x) for k in CLIENTS}

    compare(run, rounds(run.start))


@OPTIMIZERS
def test_fedrep(tmp_path, optimizer, width):
    """Collins et al. 2021, Algorithm 1: tau_h passes of the head alone, then the body alone."""
    run = Run(tmp_path, {"name": "fedrep", "head_epochs": 3}, optimizer=optimizer, width=width)
    mine = positions(run, HEAD)

    def rounds(w):
        own = {}
        for t, cohort in enumerate(run.cohorts):
            ends = {}
            for k in cohort:
                own[k], _ = run.trained(k, t, torch.where(mine, own.get(k, w), w), only=HEAD, epochs=3)
                ends[k], _ = run.trained(k, t, own[k], only=(0, 1))
            w = torch.where(mine, w, mean(ends, WEIGHTS["examples"]))
            yield w, {k: torch.where(mine, own.get(k, w), w) for k in CLIENTS}

    compare(run, rounds(run.start))


def test_every_algorithm_has_a_reference():
    here = {"ditto", "apfl", "ifca", "personal", "fedbn", "fedper", "fedrep"}
    others = ALGORITHMS.keys() - ADAPTED.keys() - {"streaming_diloco"}  # in test_adapters.py, test_streaming_diloco.py
    assert others == here | {"fedavg", "fedprox", "scaffold", "feddyn", "fednova", "qffl", "moon"}
