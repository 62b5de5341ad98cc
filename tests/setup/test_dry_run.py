"""fedddp.setup: whether a model fits the data is found on the data themselves, before anything starts."""

import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import fedddp
from fedddp import UsageError
from fedddp.algorithms import FedAvg
from fedddp.comm.world import Place
from fedddp.config import build
from fedddp.data import extreme_batches, plan
from fedddp.privacy import accounting
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

QUIET = {
    "run": {"threads": 1, "device": "cpu", "rounds": 2},
    "data.partition.num_clients": 3,
    "client.batch_size": 8,
    "telemetry": {"tensorboard": False, "progress": "off"},
    "checkpoint.every": 0,
}


@pytest.fixture
def run(tmp_path):
    """fedddp.run of a dataset and a model of plugins/fitting.py."""

    def run(data, model, *layers, **sections):
        layers = (QUIET, {"data.name": f"fitting:{data}"}, *layers)
        model = {"name": f"fitting:{model}"} if isinstance(model, str) else model
        return fedddp.run(*layers, model=model, dir=str(tmp_path / "runs"), **sections)

    return run


@pytest.fixture
def refused(run, tmp_path):
    """The error by which it is refused, in one line and with nothing written."""

    def refused(data, model, *layers, **sections):
        with pytest.raises(UsageError) as error:
            run(data, model, *layers, **sections)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "runs").exists()
        return error.value

    return refused


@pytest.mark.parametrize("data", ["Tokens", "Tokens32", "RareToken"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_token_ids_reach_an_embedding_as_they_are(run, data, execution):
    if data == "RareToken":
        with pytest.raises(UsageError, match=r"int64 from \d to 20"):
            run(data, "Bag")
        return
    client = {"client.execution.name": execution, "client.optimizer.lr": 1.0}
    losses = [line["train_loss"] for line in run(data, "Bag", client, rounds=5).history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "sections",
    [
        {"model": "CharLSTM"},
        {"privacy": {"level": "example", "noise_multiplier": 1.0}},
        {"privacy": {"level": "client", "noise_multiplier": 1.0}, "algorithm.weighting": "uniform"},
        {"client.precision": "float64"},
        {"client.precision": "bfloat16"},
        {"aggregation.compression.name": "int8"},
        {"evaluate": {"holdout": 0.2, "personal_every": 1}},
        {"algorithm.name": "moon"},
    ],
)
def test_tokens_go_with_what_else_a_run_may_have(run, sections):
    model = sections.get("model", "Bag")
    history = run("Tokens", model, {key: value for key, value in sections.items() if key != "model"}).history
    assert [line["failures"] in (0, None) for line in history] == [True, True]


@pytest.mark.parametrize(("data", "dtype"), [("Tokens", "int64"), ("Tokens32", "int32"), ("Bits", "bool")])
@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "logistic"}])
def test_whole_numbers_are_no_measurements(refused, data, dtype, model):
    error = refused(data, model)
    assert error.key == "data.name"
    assert all(word in str(error) for word in (dtype, model["name"], "float32"))


@pytest.mark.parametrize(("data", "dtype"), [("ByteTokens", "uint8"), ("FloatTokens", "float32")])
def test_measurements_are_no_token_ids(refused, data, dtype):
    error = refused(data, "Bag")
    assert error.key == "data.name"
    assert all(word in str(error) for word in (dtype, "int64"))


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        ("Vectors", "EvaluationOnly", "[8, 6], float32 fails (NotImplementedError: not for training)"),
        ("Vectors", "TenAtATime", "[8, 6], float32 fails (RuntimeError"),
        ("OneMore", "Squeezing", "should give [1, 3] scores for 1 examples, gives [3]"),
        ("Longer", {"name": "mlp"}, "does not run on inputs of shape [2, 7], float32"),
        ("Tokens", {"name": "fitting:CharLSTM", "width": 3}, "width"),
    ],
)
def test_a_model_that_fails_later_is_refused_at_start(refused, data, model, expected):
    assert expected in str(refused(data, model))


def test_a_batch_of_the_smallest_remainder_is_tried(refused, run):
    """Three clients of 20 examples: batches of 8, 8 and 4."""
    assert "[4, 6], float32 fails (ValueError: not four)" in str(refused("Vectors", "NotFour"))
    for other in ({"client.batch_size": 10}, {"client.batch_size": 8, "client.local_steps": 2}):
        assert [line["failures"] for line in run("Vectors", "NotFour", other).history] == [0, 0]


def test_a_batch_of_one_is_not_tried_where_there_is_none(run):
    run("Vectors", "Squeezing")
    batch_norm = {"name": "mlp", "hidden": 4, "norm": "batch"}
    for batch_size in (8, 19):
        history = run("Vectors", batch_norm, {"client.batch_size": batch_size}).history
        assert [line["failures"] for line in history] == [0, 0]


@pytest.mark.parametrize("batch_size", [0, 1, 4, 5, 7])
@pytest.mark.parametrize(("steps", "smallest"), [(None, 1), (1, 1), (2, 1), (None, 2)])
def test_the_extreme_batches_are_the_plans(batch_size, steps, smallest):
    sizes = torch.tensor([3, 0, 12, 26, 31, 31])
    per_client = None if steps is None else torch.full((len(sizes),), steps) * (sizes > 0)
    how = {"batch_size": batch_size, "seed": 0, "steps": per_client, "smallest": smallest}
    many = plan(sizes.tolist(), range(len(sizes)), 0, **how).mask.sum(dim=2)
    found = extreme_batches(sizes, batch_size, steps, smallest)
    assert found == (int(many.max()), int(many[many > 0].min()))
    assert extreme_batches(torch.zeros(2, dtype=torch.long), batch_size) == (0, 0)


@pytest.mark.parametrize(
    "model",
    [
        "Complex",
        {"name": "fitting:Complex", "dtype": "complex128"},
        {"name": "fitting:ComplexBuffer", "persistent": True},
        {"name": "fitting:ComplexBuffer", "persistent": False},
    ],
)
def test_complex_numbers_are_refused(refused, model):
    error = refused("Vectors", model)
    assert error.key == "model.name"
    assert ".complex" in str(error)


@pytest.mark.parametrize("how", ["numpy", "random", "torch"])
def test_what_a_constructor_draws_follows_the_seed(run, how):
    model = {"name": "fitting:Drawn", "how": how}

    def sum_of(seed, before):
        np.random.seed(before)
        random.seed(before)
        torch.manual_seed(before)
        states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
        result = run("Vectors", model, seed=seed)
        assert np.array_equal(np.random.get_state()[1], states[0])
        assert random.getstate() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        return result.summary["model_sha256"]

    assert sum_of(0, before=1) == sum_of(0, before=2) != sum_of(1, before=1)


def test_a_model_that_no_seed_determines_is_refused(refused):
    assert "run.seed" in str(refused("Vectors", {"name": "fitting:Drawn", "how": "unseeded"}))


@pytest.mark.parametrize("model", ["Lazy", "from Python", "module"])
def test_lazy_layers_have_their_sizes_from_the_data(run, model):
    def make():
        return nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.LazyLinear(3))

    given = {"Lazy": "Lazy", "from Python": make, "module": make()}[model]
    result = run("Vectors", given, {"evaluate": {"holdout": 0.2, "personal_every": 1}}, rounds=4)
    assert result.module(torch.zeros(2, 6)).shape == (2, 3)
    assert result.summary["num_parameters"] == (6 * 8 + 8) + 16 + (8 * 3 + 3)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert torch.equal(result.task.initial_params(0), result.task.initial_params(0))


def test_lazy_layers_in_precision_float64_and_in_a_task_of_ones_own(run, tmp_path):
    assert run("Vectors", "Lazy", {"client.precision": "float64"}).w.dtype == torch.float64
    task = fedddp.Task(partial(nn.LazyLinear, 3), 3)
    x = torch.randn(40, 6)
    data = fedddp.Dataset.of((x, torch.arange(40) % 3), (x[:9], torch.arange(9) % 3))
    assert fedddp.run(QUIET, dataset=data, task=task, dir=str(tmp_path)).w.shape == (21,)


@pytest.mark.parametrize("part", ["Dropout", "AlphaDropout", "FeatureAlphaDropout"])
def test_a_random_layer_under_dp_sgd_is_refused(refused, part):
    error = refused(
        "Vectors", {"name": "fitting:Dropped", "part": part}, privacy={"level": "example", "noise_multiplier": 1.0}
    )
    assert error.key == "privacy.level"
    assert all(word in str(error) for word in ("model.name='fitting:Dropped'", "privacy.level=client"))


@pytest.mark.parametrize("privacy", [{"noise_multiplier": 1.0}, {"target_epsilon": 8.0}])
@pytest.mark.parametrize("level", ["example", "client"])
def test_a_level_that_nothing_can_account_for_is_refused(refused, monkeypatch, level, privacy):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    accounting._opacus.cache_clear()
    error = refused("Vectors", {"name": "mlp"}, {"algorithm.weighting": "uniform"}, privacy={"level": level, **privacy})
    accounting._opacus.cache_clear()
    assert (error.key, error.code) == ("privacy.level", "accountant-missing")
    assert "pip install" in str(error)


@pytest.mark.parametrize(
    ("data", "skew", "key"),
    [
        ("Vectors", "rotation", "data.skew.angles"),
        ("Tokens", "rotation", "data.skew.angles"),
        ("Tokens", "noise", "data.skew.name"),
    ],
)
def test_a_skew_that_the_inputs_do_not_have_is_refused(refused, data, skew, key):
    assert refused(data, "Bag" if data == "Tokens" else {"name": "mlp"}, {"data.skew.name": skew}).key == key


@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "logistic"}, "CharLSTM"])
def test_fedbn_names_itself_where_there_is_nothing_to_keep(refused, model):
    error = refused("Tokens" if model == "CharLSTM" else "Vectors", model, {"algorithm.name": "fedbn"})
    assert error.key == "algorithm.name"
    assert "algorithm.private" not in str(error)


def test_patterns_that_the_user_sets_are_named(refused):
    layers = {"algorithm": {"name": "fedbn", "private": ["*.running_*"]}}
    assert refused("Vectors", {"name": "mlp"}, layers).key == "algorithm.private"


def test_a_contrast_without_features_is_refused(refused):
    assert refused("Vectors", "NoLinear", {"algorithm.name": "moon"}).key == "algorithm.name"


@pytest.mark.parametrize("name", ["a" * 300, "é" * 130, "a/b", "../up", "nul\0", "two\nlines", "bell\a", "\udcff"])
def test_a_run_name_that_no_folder_has_is_refused(refused, name):
    assert refused("Vectors", {"name": "mlp"}, name=name).key == "run.name"


def test_the_dry_run_calls_no_algorithm(tmp_path):
    """A user's algorithm may do more than compute; clients 0 and 1 exist."""

    class Loud(FedAvg):
        def client_update(self, server, client, local):
            raise AssertionError("called")

    table = {"run": {"dir": str(tmp_path / "runs")}, "data": {"name": "fitting:Vectors"}, "model": {"name": "mlp"}}
    config = build(table).model_copy(update={"algorithm": Loud()})
    prepare(resolve(config, Place()), Place())
    assert not (tmp_path / "runs").exists()
