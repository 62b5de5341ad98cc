"""Centred clipping's history and the clients' momentum, against the formulas: five rounds on quadratics, in float64."""

import pytest
import torch

from fedddp.algorithms import LAST
from fedddp.federation import federate
from tests.helpers.quadratics import SIZES, UNIFORM, descended, mean, quadratics, start
from tests.helpers.support import assemble, client_states, few_digits

RADIUS, STEPS = 0.4, 2


def clipped_mean(rows, v):
    for _ in range(STEPS):
        v = v + sum((x - v) * min(1.0, RADIUS / max(float((x - v).norm()), 1e-300)) for x in rows) / len(rows)
    return v


def federated(folder, size=3, rounds=5, resume="never", **keys):
    rule = {"name": "centered_clipping", "radius": RADIUS, "iterations": STEPS, **keys}
    return quadratics(
        folder,
        aggregation={"rule": rule},
        cohort={"size": size},
        run={"rounds": rounds, "name": "run", "resume": resume},
        checkpoint={"every": 1},
    )


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("size", [3, 2])
def test_it_is_the_papers_trajectory(tmp_path, history, momentum, size):
    f, server = federated(tmp_path, size, history=history, momentum=momentum)
    w, v, own = start(), torch.zeros(2, dtype=torch.float64), {}
    for t in range(5):
        for k in f.sampler.cohort(t).ids:
            update = descended(k, w) - w
            own[k] = (1 - momentum) * update + momentum * own[k] if k in own else update
        v = clipped_mean([own[k] for k in f.sampler.cohort(t).ids], v if history else torch.zeros_like(v))
        w = w + v
    after = federate(f, server)
    torch.testing.assert_close(after.w, w, rtol=1e-12, atol=1e-12)
    assert (LAST in after.extra) == history
    if history:
        torch.testing.assert_close(after.extra[LAST], v, rtol=1e-12, atol=1e-12)
    if momentum:
        kept = client_states(f, (0, 1, 2), server)
        for k, m in own.items():
            torch.testing.assert_close(kept["aggregation.momentum.delta"][k], m, rtol=1e-12, atol=1e-12)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    ends = []
    for folder, parts in (("whole", [5]), ("parts", [2, 5])):
        for rounds in parts:
            f, server = federated(tmp_path / folder, 2, rounds, "auto", momentum=0.9)
            assert server.round == (2 if len(parts) == 2 and rounds == 5 else 0)
            after = federate(f, server)
        ends.append((after, f.store.state_dict()))
    (whole, kept), (resumed, again) = ends
    assert torch.equal(whole.w, resumed.w)
    assert torch.equal(whole.extra[LAST], resumed.extra[LAST])
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_large_radius_is_the_uniform_mean_whatever_the_history(tmp_path):
    f, server = quadratics(
        tmp_path,
        aggregation={"rule": {"name": "centered_clipping", "radius": 1e6, "iterations": 1}},
        algorithm={"weighting": "examples"},
        run={"rounds": 3},
    )
    w = start()
    for _ in range(3):
        w = mean([descended(k, w) for k in range(len(SIZES))], UNIFORM)
    torch.testing.assert_close(federate(f, server).w, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "feddyn", "qffl", "ifca", "ditto", "fedbn"])
def test_algorithms_with_states_of_their_own_run_beside_it(tmp_path, name):
    """What they remember is theirs: neither the last result nor the momentum reaches them."""
    momentum = 0.0 if name in ("scaffold", "feddyn", "ifca") else 0.5  # with momentum these are refused
    keys = {"private": ["*.bias"]} if name == "fedbn" else {"server_optimizer": {"momentum": 0.9}}
    f, server = assemble(
        tmp_path,
        few_digits(60),
        [10] * 6,
        algorithm={"name": name, **keys},
        model={"name": "mlp", "hidden": 8},
        aggregation={"rule": {"name": "centered_clipping", "momentum": momentum}},
        attack={"name": "sign_flip", "num_clients": 2},
        cohort={"size": 4},
        run={"rounds": 3},
    )
    before = set(server.extra)
    after = federate(f, server)
    assert set(after.extra) == before
    assert len(after.extra[LAST]) == sum(f.algorithm.vectors(after.spec).values())
    assert after.w.isfinite().all()
    assert not torch.equal(after.w, server.w)
    assert f.algorithm.personal_params(after, client_states(f, (0, 1), server)).isfinite().all()


def test_under_example_level_privacy_the_last_result_is_remembered_too(tmp_path):
    f, server = assemble(
        tmp_path,
        few_digits(60),
        [30, 30],
        model={"name": "logistic"},
        client={"batch_size": 10},
        aggregation={"rule": {"name": "centered_clipping", "radius": 100.0, "iterations": 1}},
        privacy={"level": "example", "noise_multiplier": 1.0, "randomness": "seeded"},
        run={"rounds": 2},
    )
    first = federate(f.until(1), server)
    torch.testing.assert_close(first.extra[LAST], first.w - server.w, rtol=0, atol=1e-6)
    second = federate(f, first)
    torch.testing.assert_close(second.extra[LAST], second.w - first.w, rtol=0, atol=1e-6)
