"""Attacks on updates, over all algorithms: an attack is on what moves the model, not on what it is divided by."""

import pytest
import torch

from fedddp.algorithms import ADAPTED, ALGORITHMS
from fedddp.attacks.adversary import Corrupted
from fedddp.federation import federate
from tests.helpers.quadratics import LR, SIZES, UNIFORM, descended, mean, quadratics, start
from tests.helpers.support import assemble, client_states, few_digits

pytestmark = pytest.mark.slow

KEYS = {"fedbn": {"private": ["*.bias"]}, "feddyn": {"alpha": 0.3}}
ATTACKS = {
    "sign_flip": ({"scale": 10.0}, lambda own: -10.0 * own),
    "backdoor": ({"boost": 7.0, "share": 1e-9}, lambda own: 7.0 * own),  # of so few examples none is marked
    "gaussian": ({"std": 3.0}, None),
}


def moved(folder, algorithm, attack, compression="none", cohort=3, sampled=()):
    """How far one round of quadratics moves each model of the server."""
    f, server = quadratics(
        folder,
        algorithm=algorithm,
        attack=attack,
        aggregation={"compression": {"name": compression}},
        cohort={"size": cohort},
        run={"rounds": 1},
    )
    after = federate(f, server)
    theirs = [name for name in after.extra if name.startswith("theta.")]
    return torch.stack([after.w - server.w, *(after.extra[name] - server.extra[name] for name in theirs)])


PLAIN = ["fedavg", "fedprox", "scaffold", "fednova", "feddyn", "qffl", "ditto", "apfl", "ifca"]  # no layers by name
WEIGHTINGS = ["examples", "uniform"]


@pytest.mark.parametrize("cohort", [3, 2])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    ("name", "compression"),
    [(name, "none") for name in PLAIN] + [(name, "random_k") for name in PLAIN if name not in ("scaffold", "feddyn")],
)
def test_if_all_are_byzantine_a_round_is_the_attacked_round(tmp_path, name, compression, weighting, cohort):
    """Reversed and ten times as long: -10 times the honest move, of every model, in the first round."""
    algorithm = {"name": name, "weighting": weighting}
    honest = moved(tmp_path / "a", algorithm, {"name": "none"}, compression, cohort)
    flipped = moved(
        tmp_path / "b", algorithm, {"name": "sign_flip", "num_clients": 3, "scale": 10.0}, compression, cohort
    )
    assert honest.abs().max() > 1e-3
    torch.testing.assert_close(flipped, -10 * honest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_fednova_moves_back_under_sign_flip(tmp_path, weighting):
    """One of three clients, with unequal steps: tau_eff is that of honest clients, one direction is reversed."""
    algorithm = {"name": "fednova", "weighting": weighting}
    client = {"local_epochs": 2, "batch_size": 1}
    f, server = quadratics(
        tmp_path, algorithm=algorithm, client=client, attack={"name": "sign_flip", "scale": 10.0}, run={"rounds": 1}
    )
    (bad,) = f.algorithm.adversary.clients
    rows, taus = [], []
    for k in range(len(SIZES)):
        update, _, _ = f.algorithm.inner.client_update(server, client_states(f, (k,), server), f.trainer.on((k,), 0))
        rows.append(update.vectors["direction"][0] * (-10.0 if k == bad else 1.0))
        taus.append(update.vectors["tau"][0])
        assert float(taus[-1]) == pytest.approx(LR * 2 * SIZES[k])
    weights = SIZES if weighting == "examples" else UNIFORM
    expected = mean(taus, weights) * mean(rows, weights)
    found = federate(f, server).w - server.w
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_with_equal_steps_fednova_under_attack_is_fedavg_under_attack(tmp_path):
    attack = {"name": "sign_flip", "scale": 10.0}
    ends = [moved(tmp_path / name, {"name": name}, attack)[0] for name in ("fedavg", "fednova")]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    f, _ = quadratics(tmp_path / "who", attack=attack)
    signs = [-10.0 if k in f.algorithm.adversary.clients else 1.0 for k in range(3)]
    rows = [sign * (descended(k, start()) - start()) for k, sign in enumerate(signs)]
    torch.testing.assert_close(ends[1], mean(rows, SIZES), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ADAPTED])
def test_what_has_a_models_length_is_attacked_and_nothing_else(tmp_path, name, attack):
    """Masked algorithms upload less than a model: that is attacked as well."""
    keys, expected = ATTACKS[attack]
    f, server = assemble(
        tmp_path,
        few_digits(30),
        [10] * 3,
        algorithm={"name": name, **KEYS.get(name, {})},
        model={"name": "mlp", "hidden": 8},
        client={"precision": "float64", "batch_size": 5},
        attack={"name": attack, "num_clients": 2, **keys},
    )
    assert isinstance(f.algorithm, Corrupted)
    for k in range(3):
        local = f.trainer.on((k,), 0)
        own, kept, _ = f.algorithm.inner.client_update(server, client_states(f, (k,), server), local)
        sent, after, _ = f.algorithm.client_update(server, client_states(f, (k,), server), local)
        assert torch.equal(sent.weight, own.weight)
        assert after.keys() == kept.keys()
        assert all(torch.equal(after[key], kept[key]) for key in kept)
        for vector, rows in own.vectors.items():
            if k not in f.algorithm.adversary.clients or rows.shape[1] == 1:
                assert torch.equal(sent.vectors[vector], rows)
            elif expected:
                assert torch.equal(sent.vectors[vector], expected(rows))
            else:
                assert float(sent.vectors[vector].std()) == pytest.approx(3.0, rel=0.1)
