"""What holds for every algorithm but those on adapters (test_adapters.py), and for FedAvg's variants.

Three rounds with half of the clients. Sequential and vectorized execution agree, in what clients remember too; a
resumed run ends at the same bits as one that was never interrupted; what a round starts from is not changed by it.
"""

from dataclasses import replace

import pytest
import torch

from fedddp.algorithms import ADAPTED, ALGORITHMS
from fedddp.federation import federate
from tests.helpers.support import assemble, client_states
from tests.helpers.zoo import BATCHED, SIZES, dataset, task_of

pytestmark = pytest.mark.slow

KEYS = {"fedprox": {"mu": 0.3}, "feddyn": {"alpha": 0.3}, "fedbn": {"private": ["*.bias"]}}
"""Of algorithms whose defaults change too little in three rounds, or that have a key without default."""
SERVERS = {
    "fedavgm": {"lr": 0.5, "momentum": 0.9},
    "diloco": {"lr": 0.7, "momentum": 0.9, "nesterov": True},
    "fedadam": {"name": "adam", "lr": 0.01, "eps": 1e-3},
    "fedyogi": {"name": "yogi"},
    "fedadagrad": {"name": "adagrad", "eps": 1e-3},
}
CASES = {name: {"name": name, **KEYS.get(name, {})} for name in ALGORITHMS if name not in ADAPTED}
CASES |= {name: {"server_optimizer": keys} for name, keys in SERVERS.items()}
CASES |= {
    "scaffold, option 1": {"name": "scaffold", "option": 1},
    "fednova, mu": {"name": "fednova", "mu": 0.5},
    "feddyn, alpha by size": {"name": "feddyn", "alpha": 0.3, "alpha_by_size": True},
    "personal scaffold, option 1": {"name": "personal", "inner": {"name": "scaffold", "option": 1}},
}
CASES["scaffold, adam"] = {"name": "scaffold", "server_optimizer": SERVERS["fedadam"]}
KEPT = {"optimizer_state": "keep", "optimizer": {"name": "adamw", "lr": 0.01}}
STEPS = {"local_epochs": 1, "local_steps": 7, "order": "continue"}
CASES |= {
    "continued order": {"client": STEPS},
    "continued order, moon": {"name": "moon", "client": STEPS},
    "continued order, kept adamw, steps' rates": {
        "client": {**STEPS, **KEPT, "schedule": {"name": "cosine", "unit": "steps", "warmup": 3, "rounds": 21}}
    },
    "kept adamw": {"client": KEPT},
    "kept momentum": {"client": {"optimizer_state": "keep", "optimizer": {"lr": 0.05, "momentum": 0.9}}},
    "kept adamw, fedbn": {"name": "fedbn", "private": ["*.bias"], "client": KEPT},
}
"""``client``: more keys of that section."""
MODEL = "mlp"


def assembled(folder, algorithm, rounds=3, execution="sequential", **run):
    """Six clients of very different sizes, one of them empty, unequal work; checkpoints of every round."""
    client = {"precision": "float64", "local_epochs": 2, "batch_size": 5, "stragglers": 0.5}
    client |= {"execution": {"name": execution, "width": 3 if execution == "vectorized" else 0}}
    client |= {"optimizer": {"lr": 0.1}, "schedule": {"name": "exponential", "gamma": 0.9}}
    algorithm = dict(algorithm)
    client |= algorithm.pop("client", {})
    return assemble(
        folder,
        dataset(),
        SIZES,
        task=task_of(BATCHED[MODEL]),
        algorithm=algorithm,
        client=client,
        cohort={"size": 4},
        checkpoint={"every": 1},
        run={"rounds": rounds, "name": "run", **run},
    )


def remembered(f):
    return {key: value.clone() for key, value in f.store.state_dict().items()}


def trained(folder, algorithm, **how):
    f, server = assembled(folder, algorithm, **how)
    return federate(f, server), remembered(f)


def close(a, b, start=0.0):
    return (a - b).abs().max() <= 1e-9 * max(1e-12, float((b - start).abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_vectorized_execution_is_sequential_execution(tmp_path, case):
    one, kept = trained(tmp_path / "one", CASES[case])
    many, same = trained(tmp_path / "many", CASES[case], execution="vectorized")
    begin = task_of(BATCHED[MODEL]).initial_params(0)
    assert close(many.w, one.w, begin)
    first = assembled(tmp_path / "first", CASES[case])[1]
    moved = [(one.w - begin).abs().max(), *((one.extra[name] - first.extra[name]).abs().max() for name in one.extra)]
    assert max(moved) > 1e-3
    assert one.extra.keys() == many.extra.keys()
    assert all(close(many.extra[name], one.extra[name]) for name in one.extra)
    assert kept.keys() == same.keys()
    assert all(close(same[key], kept[key]) for key in kept)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, case):
    whole, kept = trained(tmp_path / "whole", CASES[case])
    trained(tmp_path / "parts", CASES[case], rounds=1)
    f, server = assembled(tmp_path / "parts", CASES[case], resume="auto")
    assert server.round == 1
    resumed = federate(f, server)
    assert resumed.round == 3
    assert torch.equal(resumed.w, whole.w)
    assert resumed.extra.keys() == whole.extra.keys()
    assert all(torch.equal(resumed.extra[name], whole.extra[name]) for name in whole.extra)
    again = remembered(f)
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[key], kept[key]) for key in kept)


@pytest.mark.parametrize("case", CASES)
def test_what_a_round_starts_from_is_not_changed(tmp_path, case):
    """States are passed, not kept: a checkpoint of the old one may still be on its way to the disk."""
    f, server = assembled(tmp_path, CASES[case])
    server = federate(f.until(1), server)
    before, kept = (
        replace(server, w=server.w.clone(), extra={k: v.clone() for k, v in server.extra.items()}),
        remembered(f),
    )
    local = f.trainer.on((0,), 1)
    state = client_states(f, (0,), server)
    held = {name: vectors.clone() for name, vectors in state.items()}
    f.algorithm.client_update(server, state, local)
    assert all(torch.equal(state[name], held[name]) for name in held)
    federate(f.until(2), server)
    assert torch.equal(server.w, before.w)
    assert all(torch.equal(server.extra[name], before.extra[name]) for name in before.extra)
    assert bool(kept) == bool(f.algorithm.init_client(server))


@pytest.mark.parametrize("case", CASES)
def test_an_upload_is_laid_out_as_announced_and_weighs_no_more_than_its_examples(tmp_path, case):
    f, server = assembled(tmp_path, CASES[case])
    for k, size in enumerate(SIZES):
        update, state, _ = f.algorithm.client_update(server, client_states(f, (k,), server), f.trainer.on((k,), 0))
        announced = f.algorithm.vectors(server.spec)
        assert {name: vectors.shape for name, vectors in update.vectors.items()} == {
            name: (1, length) for name, length in announced.items()
        }
        assert all(vectors.isfinite().all() for vectors in update.vectors.values())
        assert 0 <= float(update.weight) <= max(1, size)
        assert state.keys() == f.algorithm.init_client(server).keys()
        assert f.algorithm.personal_params(server, state).shape[-1] == len(server.w)
