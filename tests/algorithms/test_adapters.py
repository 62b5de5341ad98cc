"""Algorithms on low-rank adapters: the mean of the clients' products, and what averaging the factors makes of it."""

from functools import partial

import pytest
import torch
from torch import nn

from fedddp.algorithms import ADAPTED, Adapters
from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.registry.torchvision_operators import declare_if_missing
from fedddp.types import ServerState
from tests.helpers.support import assemble
from tests.helpers.zoo import BATCHED, CLASSES, dataset, task_of

declare_if_missing()
peft = pytest.importorskip("peft")

RANK, ALPHA = 4, 8.0
SIZES = [11, 5, 17, 11]


def mlp(beside: str = "") -> nn.Module:
    """Two adapted layers; what is named ``beside`` trains, too."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="1|3")
    peft.inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name == beside)
    return module.double()


def assembled(folder, algorithm, rounds=1, sizes=SIZES, execution="sequential", make=mlp, **sections):
    client = {"precision": "float64", "local_epochs": 2, "batch_size": 5, "optimizer": {"lr": 0.3}}
    client["execution"] = {"name": execution}
    sections["run"] = {"rounds": rounds, "name": "run", **sections.get("run", {})}
    return assemble(folder, dataset(), sizes, task=task_of(make), algorithm=algorithm, client=client, **sections)


def client_models(f, server: ServerState):
    """Where each client's training ends in the next round, and its weight."""
    rows, weights = [], []
    for k in f.sampler.cohort(server.round).ids:
        local = f.trainer.on((k,), server.round)
        rows.append(local.train(server.w).w[0])
        weights.append(float(local.num_examples[0]))
    return torch.stack(rows), torch.tensor(weights, dtype=torch.float64) / sum(weights)


def effective(server: ServerState):
    """What is added to the layers, in units of alpha / rank."""
    adapters = Adapters.of(server.spec)
    added = adapters.products(server.w)
    if any("residual" in name for name in server.spec.names):
        added = added + torch.cat([r.flatten() for r in adapters.residuals(server.w)])
    return added


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
@pytest.mark.parametrize("server_optimizer", [{}, {"momentum": 0.5}])
def test_the_layers_move_by_the_mean_of_the_products(tmp_path, name, server_optimizer):
    f, server = assembled(tmp_path, {"name": name, "server_optimizer": {"lr": 1.0, **server_optimizer}}, rounds=3)
    for t in range(1, 4):
        rows, p = client_models(f, server)
        adapters = Adapters.of(server.spec)
        residual = effective(server) - adapters.products(server.w)
        wanted = residual + p @ adapters.products(rows)
        before, server = server, federate(f.until(t), server)
        torch.testing.assert_close(effective(server), wanted, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(effective(server), effective(before), atol=1e-4)


def test_the_mean_of_the_factors_is_another_and_its_error_is_reported(tmp_path):
    """`lora_error` is within a factor of 2 of the error itself: two layers, 8 probes each."""
    f, server = assembled(tmp_path, {"name": "fedavg"}, rounds=2)
    server = federate(f.until(1), server)  # A and B both differ from now on
    rows, p = client_models(f, server)
    adapters = Adapters.of(server.spec)
    exact, averaged = p @ adapters.products(rows), adapters.products(p @ rows)
    error = float((exact - averaged).norm() / exact.norm())
    after = federate(f, server)
    torch.testing.assert_close(effective(after), averaged, rtol=1e-12, atol=1e-12)
    assert error > 1e-3
    assert error / 2 < f.telemetry.history[-1]["lora_error"] < 2 * error


def test_fedex_reports_the_error_that_it_takes_back(tmp_path):
    f, server = assembled(tmp_path, {"name": "fedex_lora"})
    rows, p = client_models(f, server)
    adapters = Adapters.of(server.spec)
    exact, averaged = p @ adapters.products(rows), adapters.products(p @ rows)
    error = float((exact - averaged).norm() / exact.norm())
    federate(f, server)
    assert f.telemetry.history[-1]["lora_error"] == pytest.approx(error, rel=1e-9)


def test_ffa_never_moves_one_factor_and_averages_the_product_exactly(tmp_path):
    f, server = assembled(tmp_path, {"name": "ffa_lora"}, rounds=2)
    adapters = Adapters.of(server.spec)
    first = [a.clone() for a, _ in adapters.factors(server.w)]
    after = federate(f, server)
    assert all(torch.equal(a, b) for (a, _), b in zip(adapters.factors(after.w), first, strict=True))
    assert all(float(b.abs().max()) > 1e-3 for _, b in adapters.factors(after.w))
    assert f.algorithm.vectors(server.spec) == {"delta": sum(b.numel() for _, b in adapters.factors(after.w))}
    assert "lora_error" not in f.telemetry.history[-1]


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "hetlora"])
def test_with_one_client_the_layers_are_fedavgs(tmp_path, name):
    keys = {"ranks": [RANK]} if name == "hetlora" else {}
    plain = federate(*assembled(tmp_path / "a", {"name": "fedavg"}, sizes=[20]))
    same = federate(*assembled(tmp_path / "b", {"name": name, **keys}, sizes=[20]))
    torch.testing.assert_close(effective(same), effective(plain), rtol=1e-10, atol=1e-12)


def test_flora_begins_each_round_with_other_adapters_that_add_nothing(tmp_path):
    f, server = assembled(tmp_path, {"name": "flora"}, rounds=2)
    drawn = []
    for t in (1, 2):
        server = federate(f.until(t), server)
        factors = Adapters.of(server.spec).factors(server.w)
        assert all(not b.any() for _, b in factors)
        drawn.append(factors[0][0].clone())
        assert float(drawn[-1].abs().max()) <= factors[0][0].shape[1] ** -0.5
    assert not torch.allclose(*drawn)


def test_hetlora_weighs_and_cuts_by_rank(tmp_path):
    ranks = [1, 2, 4]
    f, server = assembled(tmp_path, {"name": "hetlora", "ranks": ranks})
    adapters, rows, weights = Adapters.of(server.spec), [], []
    for k in range(len(SIZES)):
        rank, own = ranks[k % 3], torch.ones_like(server.w)
        for a, b in adapters.factors(own):
            a[rank:], b[:, rank:] = 0, 0
        rows.append(f.trainer.on((k,), 0).train(server.w * own, lambda g, _, own=own: g * own[: g.shape[1]]).w[0])
        assert all(not a[rank:].any() and not b[:, rank:].any() for a, b in adapters.factors(rows[-1]))
        weights.append(adapters.products(rows[-1]).norm())
    p = torch.stack(weights) / sum(weights)
    after = federate(f, server)
    torch.testing.assert_close(after.w, p @ torch.stack(rows), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*ADAPTED, "fedavg"])
def test_clients_trained_together_end_as_one_by_one(tmp_path, name):
    keys = {"ranks": [1, 2, 4]} if name == "hetlora" else {}
    one = federate(*assembled(tmp_path / "a", {"name": name, **keys}, rounds=2))
    f, server = assembled(tmp_path / "b", {"name": name, **keys}, rounds=2, execution="vectorized")
    assert f.trainer.width > 1
    torch.testing.assert_close(federate(f, server).w, one.w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*ADAPTED, "fedavg"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    algorithm = {"name": name, **({"ranks": [1, 2, 4]} if name == "hetlora" else {})}
    whole = federate(*assembled(tmp_path / "whole", algorithm, rounds=3))
    federate(*assembled(tmp_path / "parts", algorithm, rounds=1, checkpoint={"every": 1}))
    f, server = assembled(tmp_path / "parts", algorithm, rounds=3, run={"resume": "auto"})
    assert server.round == 1
    after = federate(f, server)
    assert torch.equal(after.w, whole.w)
    assert all(torch.equal(after.extra[key], whole.extra[key]) for key in whole.extra)


def test_a_factor_of_ones_own_stays_with_its_client(tmp_path):
    algorithm = {"name": "personal", "private": ["*.lora_A.*"]}
    f, server = assembled(tmp_path, algorithm, rounds=2)
    after = federate(f, server)
    adapters = Adapters.of(server.spec)
    pairs = zip(adapters.factors(after.w), adapters.factors(server.w), strict=True)
    assert all(torch.equal(a, a_0) and not torch.equal(b, b_0) for (a, b), (a_0, b_0) in pairs)
    assert f.algorithm.vectors(server.spec)["delta"] == sum(b.numel() for _, b in adapters.factors(after.w))


@pytest.mark.parametrize(
    ("name", "compression"),
    [("flora", "int8"), ("fedex_lora", "int8"), ("flora", "top_k"), ("fedex_lora", "top_k"), ("flora", "power_sgd")],
)
def test_products_are_compressed_like_updates(tmp_path, name, compression):
    """What is sent are changes, so that what is rounded off or left out is a part of them and not of the model."""
    algorithm = {"name": name}
    plain, start = federate(*assembled(tmp_path / "a", algorithm)), assembled(tmp_path / "c", algorithm)[1]
    lossy = {"compression": {"name": compression}}
    rounded = federate(*assembled(tmp_path / "b", algorithm, aggregation=lossy))
    whole = (effective(plain) - effective(start)).norm()
    assert 0 < (effective(rounded) - effective(plain)).norm() < whole


def test_a_byzantine_client_reverses_products_too(tmp_path):
    attack = {"name": "sign_flip", "num_clients": len(SIZES)}
    honest = federate(*assembled(tmp_path / "a", {"name": "flora"}))
    reversed_ = federate(*assembled(tmp_path / "b", {"name": "flora"}, attack=attack))
    torch.testing.assert_close(effective(reversed_), -effective(honest), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTED)
def test_a_model_without_adapters_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"no low-rank adapters; set model\.lora\.rank"):
        assemble(tmp_path, dataset(), SIZES, task=task_of(BATCHED["mlp"]), algorithm={"name": name})


def test_a_rank_above_that_of_the_adapters_is_refused(tmp_path):
    with pytest.raises(UsageError, match=rf"ranks=\[2, 9\]: the model's adapters have rank {RANK}"):
        assembled(tmp_path, {"name": "hetlora", "ranks": [2, 9]})


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "hetlora"])
def test_what_trains_beside_the_adapters_is_averaged(tmp_path, name):
    bias = "3.base_layer.bias"
    keys = {"ranks": [RANK]} if name == "hetlora" else {}
    f, server = assembled(tmp_path, {"name": name, "weighting": "uniform", **keys}, make=partial(mlp, bias))
    rows, _ = client_models(f, server)
    after = federate(f, server)
    torch.testing.assert_close(after.spec.views(after.w)[bias], after.spec.views(rows)[bias].mean(dim=0))
