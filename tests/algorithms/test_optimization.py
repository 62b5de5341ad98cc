"""Algorithms against the equations of their papers, written out on quadratics; what they reduce to; where they lead."""

from dataclasses import replace

import pytest
import torch

from fedddp.algorithms import ALGORITHMS, QFFL
from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.types import Cohort, Mean, RoundAborted, ServerState
from tests.helpers.quadratics import LR, SIZES, UNIFORM, descended, gradient, loss, mean, optimum, quadratics, start
from tests.helpers.support import client_states, flat

pytestmark = pytest.mark.slow


def trained(folder, rounds, algorithm, **sections):
    f, server = quadratics(folder, algorithm=algorithm, run={"rounds": rounds}, **sections)
    return federate(f, server), f


def final(folder, rounds, algorithm, **sections):
    return trained(folder, rounds, algorithm, **sections)[0].w


def assert_near(w, expected, tolerance=1e-11):
    assert (w - expected).abs().max() <= tolerance


# -- what they reduce to ------------------------------------------------------------------------------------------

FULL = {"client": {"local_epochs": 4, "batch_size": 2}}
SAME_AS_FEDAVG = {
    "fedprox": ({"mu": 0.0}, {}, 3),
    "fednova": ({}, {"client": {"local_epochs": 4, "batch_size": 0}}, 3),  # as many steps for everybody
    "fednova, momentum": (
        {},
        {"client": {"local_steps": 4, "batch_size": 2, "optimizer": {"lr": LR, "momentum": 0.8}}},
        3,
    ),
    "scaffold": ({}, FULL, 1),  # c = c_i = 0 in the first round
    "qffl": ({"q": 0.0}, FULL, 3),
}


@pytest.mark.parametrize("case", SAME_AS_FEDAVG)
def test_it_reduces_to_fedavg(tmp_path, case):
    keys, sections, rounds = SAME_AS_FEDAVG[case]
    algorithm = {"name": case.split(",")[0], "weighting": "uniform", **keys}
    w = final(tmp_path / "a", rounds, algorithm, **sections)
    fedavg = final(tmp_path / "b", rounds, {"weighting": "uniform"}, **sections)
    assert_near(w, fedavg, 0 if case == "fedprox" else 1e-13)
    assert (w - start()).abs().max() > 0.1


@pytest.mark.parametrize("optimizer", [{"momentum": 0.0}, {"momentum": 0.8}, {"weight_decay": 0.3}])
def test_scaffold_whose_controls_stay_at_0_is_fedavg(tmp_path, optimizer):
    f, server = quadratics(tmp_path, algorithm={"name": "scaffold"}, client={"optimizer": {"lr": LR, **optimizer}})
    plain, _ = quadratics(tmp_path, algorithm={"weighting": "uniform"}, client={"optimizer": {"lr": LR, **optimizer}})
    local = f.trainer.on((1,), 0)
    update, _, _ = f.algorithm.client_update(server, client_states(f, (1,), server), local)
    expected, _, _ = plain.algorithm.client_update(server, {}, local)
    assert torch.equal(update.vectors["delta"], expected.vectors["delta"])


def test_feddyns_first_round_is_fedprox_and_once_more_the_share_of_the_move(tmp_path):
    """grad_k = 0 and h = -alpha mean(delta) at first; full participation."""
    dyn = final(tmp_path / "a", 1, {"name": "feddyn", "alpha": 0.3})
    prox = final(tmp_path / "b", 1, {"name": "fedprox", "mu": 0.3, "weighting": "uniform"})
    assert_near(dyn - start(), 2 * (prox - start()))


# -- the papers' recursions ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_with_some_clients_the_servers_vector_stays_the_mean_of_all_of_theirs(tmp_path, name):
    """c = (1 / N) sum c_i and h = (1 / N) sum grad_i over ALL clients, those that did not take part as they were."""
    server, f = trained(tmp_path, 5, {"name": name}, cohort={"size": 2})
    theirs = client_states(f, (0, 1, 2), server)[{"scaffold": "control", "feddyn": "gradient"}[name]]
    mine = server.extra[{"scaffold": "control", "feddyn": "h"}[name]]
    assert len({f.sampler.cohort(t).ids for t in range(5)}) > 1
    assert_near(mine, theirs.mean(dim=0))
    assert mine.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_round_that_brings_nothing_changes_no_client_either(tmp_path, name, monkeypatch):
    """Round 2 of 3 is aborted: what clients computed never reached the server, and c stays the mean of the c_i."""
    f, start = quadratics(tmp_path, algorithm={"name": name}, run={"rounds": 3})
    total = f.pipeline.reduce.total

    def aborted(comm, round):
        if round == 1:
            raise RoundAborted("the parties do not agree")
        return total(comm, round)

    first = federate(f.until(1), start)
    kept = {key: vector.clone() for key, vector in f.store.state_dict().items()}
    monkeypatch.setattr(f.pipeline.reduce, "total", aborted)
    second = federate(f.until(2), first)
    assert second.round == 2
    assert torch.equal(second.w, first.w)
    assert f.store.state_dict().keys() == kept.keys()
    assert all(torch.equal(vector, kept[key]) for key, vector in f.store.state_dict().items())
    third = federate(f, second)
    theirs = client_states(f, (0, 1, 2), third)[{"scaffold": "control", "feddyn": "gradient"}[name]]
    assert_near(third.extra[{"scaffold": "control", "feddyn": "h"}[name]], theirs.mean(dim=0))
    assert (third.w - second.w).abs().max() > 1e-3


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


class Drawn:
    """Work that is as many steps as said for each client, on full batches."""

    batch_size, smallest = 0, 1

    def __init__(self, steps):
        self.steps = steps

    def drawn(self, sizes, ids, round, seed):
        return torch.tensor([self.steps[k] for k in ids])


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


# -- where they lead -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sections", [{}, {"cohort": {"size": 2}}], ids=["all", "two of three"])
@pytest.mark.parametrize(
    "algorithm", [{"name": "scaffold"}, {"name": "feddyn", "alpha": 0.5}], ids=["scaffold", "feddyn"]
)
def test_it_reaches_the_optimum_of_the_whole_where_fedavg_does_not(tmp_path, algorithm, sections):
    best = optimum(UNIFORM)
    assert_near(final(tmp_path / "a", 60, algorithm, **sections), best, 1e-4)
    beside = final(tmp_path / "b", 30, {"weighting": "uniform"}, **sections)
    assert (beside - best).abs().max() > 0.1


def test_scaffold_with_momentum_and_weights_reaches_the_weighted_optimum(tmp_path):
    client = {"optimizer": {"lr": 0.1, "momentum": 0.8}}
    w = final(tmp_path, 60, {"name": "scaffold", "weighting": "examples"}, client=client)
    assert_near(w, optimum(), 1e-4)
    assert (optimum() - optimum(UNIFORM)).abs().max() > 0.1


def limit(f, server):
    """Where a method without memory settles: a round is affine here, w -> A w + b, so three rounds tell."""
    origin, *ends = (
        federate(f.until(1), replace(server, w=w)).w for w in torch.tensor([[0, 0], [1, 0], [0, 1]]).double()
    )
    a = torch.stack([end - origin for end in ends], dim=1)
    assert torch.linalg.eigvals(a).abs().max() < 1
    return torch.linalg.solve(torch.eye(2).double() - a, origin)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fednova_removes_the_inconsistency_of_unequal_steps(tmp_path, momentum):
    """With small steps FedAvg settles at the optimum weighted by p_k tau_k instead of p_k (Wang et al., Theorem 1)."""
    taken, points = (2, 1, 8), {}
    for name in ("fednova", "fedavg"):
        client = {"optimizer": {"lr": 1e-4, "momentum": momentum}}
        f, server = quadratics(tmp_path / name, algorithm={"name": name}, client=client)
        f.trainer._training = replace(f.trainer._training, work=Drawn(taken))
        points[name] = limit(f, server)
    assert_near(points["fednova"], optimum(), 0.01)
    assert (points["fedavg"] - optimum()).abs().max() > 0.3
    if not momentum:
        assert_near(points["fedavg"], optimum([n * tau for n, tau in zip(SIZES, taken, strict=True)]), 0.01)


def test_a_larger_q_makes_losses_more_even(tmp_path):
    """The spread of the clients' losses, relative to their mean, at q = 0, 1, 5."""
    spreads = []
    for q in (0.0, 1.0, 5.0):
        w = final(tmp_path / str(q), 25, {"name": "qffl", "q": q}, client={"local_epochs": 1})
        losses = torch.stack([loss(k, w) for k in range(3)])
        spreads.append(float(losses.std() / losses.mean()))
    assert spreads[0] > spreads[1] > spreads[2]


def test_scaffolds_control_is_the_gradient_at_the_optimum(tmp_path):
    server, f = trained(tmp_path, 60, {"name": "scaffold"})
    controls = client_states(f, (0, 1, 2), server)["control"]
    for k in range(3):
        assert_near(controls[k], gradient(k, server.w), 1e-6)


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "sections", "words"),
    [
        ("scaffold", {"client": {"optimizer": {"name": "adam"}}}, "algorithm.name='scaffold': .*Adam.*name=sgd"),
        ("fednova", {"client": {"optimizer": {"name": "adamw"}}}, "algorithm.name='fednova': .*AdamW.*name=sgd"),
        ("qffl", {"client": {"optimizer": {"name": "adam"}}}, "algorithm.name='qffl': .*lipschitz"),
        ({"name": "fednova", "mu": 0.1}, {"client": {"optimizer": {"momentum": 0.5}}}, "momentum=0, or mu=0"),
        ({"name": "fednova", "mu": 0.1}, {"client": {"optimizer": {"momentum": 0.5, "nesterov": True}}}, "or mu=0"),
        ({"name": "fednova", "mu": 5.0}, {}, "mu=5 .*smaller mu"),
        ({"name": "fednova", "mu": -1.0}, {}, "algorithm.mu=-1.0"),
        ({"name": "scaffold", "option": 3}, {}, "algorithm.option=3"),
        ({"name": "scaffold", "option": 1}, {"privacy": {"level": "example", "noise_multiplier": 1.0}}, "option=2"),
        ({"name": "scaffold", "option": 2}, {"client": {"optimizer": {"name": "yogi"}}}, "algorithm.option=1"),
        ({"name": "feddyn", "alpha_by_size": True, "weighting": "examples"}, {}, "use weighting=uniform"),
        ({"name": "ifca", "weighting": "auto"}, {}, "algorithm.weighting='auto'"),
        ("qffl", {"privacy": {"level": "example", "noise_multiplier": 1.0}}, "privacy.level=example does not cover"),
        *(
            (
                name,
                {"privacy": {"level": "client", "noise_multiplier": 1.0}},
                f"algorithm.name='{name}': .*level=client",
            )
            for name in ("fednova", "scaffold", "feddyn")
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, algorithm, sections, words):
    table = algorithm if isinstance(algorithm, dict) else {"name": algorithm}
    with pytest.raises(UsageError, match=words):
        quadratics(tmp_path, algorithm=table, **sections)


def test_every_algorithm_has_its_paper_in_the_docstring():
    for cls in ALGORITHMS.values():
        assert "Symbols: " in cls.__doc__
        assert ", Algorithm " in cls.__doc__ or ", eq. " in cls.__doc__
