"""Algorithms against the equations of their papers, written out on quadratics; what they reduce to; where they lead."""

from dataclasses import replace

import pytest
import torch

from fedddp.algorithms import ADAPTED, ALGORITHMS
from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.types import RoundAborted
from tests.helpers.quadratics import (
    LR,
    SIZES,
    UNIFORM,
    Drawn,
    assert_near,
    final,
    gradient,
    loss,
    optimum,
    quadratics,
    start,
    trained,
)
from tests.helpers.support import client_states

pytestmark = pytest.mark.slow


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
        assert ", Algorithm " in cls.__doc__ or ", eq. " in cls.__doc__ or cls in ADAPTED.values()
