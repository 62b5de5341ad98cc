"""fedddp.config: files and overrides become a configuration, mistakes become one line."""

import sys
import tomllib
from dataclasses import replace

import pytest
from torch import nn

from fedddp.config import Config, UsageError, build, flatten, parse, read_toml, to_dict, to_toml
from fedddp.data.partition import IID, Dirichlet, Shards
from fedddp.models import CNN, MLP, ImportedModule
from fedddp.optim import OPTIMIZERS, SGD

USER_MODULE = """
from dataclasses import dataclass
from torch import nn
from fedddp.algorithms import FedAvg
from fedddp.data.partition import Partitioner

@dataclass(frozen=True)
class Slow:
    lr: float = 0.01
    patience: int = 3

    def gradient_weight(self, steps): ...

    def init(self, params): ...

    def step_(self, params, grads, state): ...

@dataclass(frozen=True)
class Mine(FedAvg):
    mu: float = 0.5

@dataclass(frozen=True)
class Halves(Partitioner):
    def split(self, labels, seed):
        raise NotImplementedError

class Net(nn.Module):
    def __init__(self, units, depth=2):
        super().__init__()
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's, importable as ``users_own``."""
    (tmp_path / "users_own.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("users_own", None)


def configured(*argv):
    return build(*parse(argv).layers)


def test_without_anything_it_is_the_quickstart():
    config = configured()
    assert config == Config()
    assert (config.data.name, config.model, config.client.optimizer) == ("mnist-mini", CNN(), SGD(lr=0.1))
    assert config.algorithm.server_optimizer == SGD(lr=1.0)
    assert (config.run.rounds, config.run.seed, config.data.partition) == (10, 0, IID())


def test_files_merge_left_to_right_then_overrides_win(tmp_path):
    (tmp_path / "a.toml").write_text("run = {rounds = 3, seed = 4}\n[client.optimizer]\nlr = 0.5\nmomentum = 0.9\n")
    (tmp_path / "b.toml").write_text("[run]\nseed = 5\n[client]\nlocal_epochs = 2\noptimizer.lr = 0.25\n")
    files = [str(tmp_path / "a.toml"), str(tmp_path / "b.toml")]
    config = configured("--client.local_epochs=7", *files)
    assert (config.run.rounds, config.run.seed, config.client.local_epochs) == (3, 5, 7)
    assert config.client.optimizer == SGD(lr=0.25, momentum=0.9)
    assert configured(*reversed(files)).run.seed == 4


def test_a_later_override_wins():
    assert configured("--run.seed=1", "--run.seed=2").run.seed == 2


@pytest.mark.parametrize("words", [("--run.name=trial",), ("--run.name", "trial")])
def test_a_value_follows_an_equals_sign_or_a_space(words):
    config = configured(*words, "--run.rounds=4")
    assert (config.run.name, config.run.rounds) == ("trial", 4)


def test_a_value_may_hold_equals_signs_and_minus_signs():
    assert configured("--run.name=a=b").run.name == "a=b"
    assert parse(["--client.optimizer.lr", "-1"]).layers == ({"client": {"optimizer": {"lr": -1}}},)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("True", True),
        ("False", False),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("{name = 'iid', num_clients = 5}", {"name": "iid", "num_clients": 5}),
        ("iid", "iid"),
        ("mnist-mini", "mnist-mini"),
        ("my.module:Net", "my.module:Net"),
        ("/some/folder", "/some/folder"),
        ("", ""),
    ],
)
def test_values_are_toml_or_else_the_text_itself(text, value):
    (layer,) = parse([f"--data.args={text}"]).layers
    assert layer == {"data": {"args": value}}
    assert isinstance(layer["data"]["args"], type(value))


def test_a_choice_takes_its_own_keys_and_defaults():
    config = configured("--data.partition.name=dirichlet", "--data.partition.alpha=0.1", "--model.name=mlp")
    assert config.data.partition == Dirichlet(alpha=0.1)
    assert config.model == MLP(hidden=200)
    assert configured("--data.partition.name=shards").data.partition == Shards(shards_per_client=2)
    assert configured("--algorithm.server_optimizer.momentum=0.9").algorithm.server_optimizer == SGD(1.0, momentum=0.9)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_an_adaptive_optimizer_is_reddi_et_als_on_the_server_and_torchs_on_clients(name):
    config = configured(f"--algorithm.server_optimizer.name={name}", f"--client.optimizer.name={name}")
    server = config.algorithm.server_optimizer
    assert config.client.optimizer == OPTIMIZERS[name]()
    assert (server.lr, server.eps, server.initial_accumulator) == (0.01, 1e-3, 1e-6)
    assert (getattr(server, "beta2", 0.99), getattr(server, "bias_correction", False)) == (0.99, False)
    assert build(to_dict(config)) == config
    changed = configured(f"--algorithm.server_optimizer.name={name}", "--algorithm.server_optimizer.lr=0.5")
    assert changed.algorithm.server_optimizer == replace(server, lr=0.5)


@pytest.mark.parametrize("name", ["adamw", "users_own:Slow"])
def test_other_server_optimizers_keep_their_own_defaults(name, user_module):
    chosen = configured(f"--algorithm.server_optimizer.name={name}").algorithm.server_optimizer
    assert chosen == type(chosen)()


def test_classes_of_the_users_are_named_by_import_path(user_module):
    config = configured(
        "--model.name=users_own:Net",
        "--model.units=7",
        "--client.optimizer.name=users_own:Slow",
        "--client.optimizer.patience=5",
        "--algorithm.name=users_own:Mine",
        "--algorithm.mu=0.25",
        "--algorithm.weighting=uniform",
        "--data.partition.name=users_own:Halves",
        "--data.partition.num_clients=4",
    )
    import users_own

    assert config.model == ImportedModule("users_own:Net", users_own.Net, {"units": 7})
    assert config.client.optimizer == users_own.Slow(lr=0.01, patience=5)
    assert config.algorithm == users_own.Mine(weighting="uniform", mu=0.25)
    assert config.data.partition == users_own.Halves(num_clients=4)
    assert to_dict(config)["algorithm"]["name"] == "users_own:Mine"
    assert to_dict(config)["model"] == {"name": "users_own:Net", "units": 7}
    assert build(tomllib.loads(to_toml(config))) == config


def test_the_defaults_of_one_choice_are_not_those_of_another(user_module):
    """Of the server's optimizers only sgd starts with lr 1."""
    config = configured("--algorithm.server_optimizer.name=users_own:Slow")
    assert config.algorithm.server_optimizer.lr == 0.01


def test_a_users_class_is_checked_like_one_of_ours(user_module):
    with pytest.raises(UsageError, match=r"algorithm.mu='much': should be a valid number"):
        configured("--algorithm.name=users_own:Mine", "--algorithm.mu=much")
    with pytest.raises(UsageError, match=r"client.optimizer.patients: unknown key; did you mean 'patience'\?"):
        configured("--client.optimizer.name=users_own:Slow", "--client.optimizer.patients=1")


def test_objects_may_stand_for_sections():
    config = build({"model": MLP(hidden=3), "client": {"optimizer": SGD(0.3)}})
    assert (config.model, config.client.optimizer) == (MLP(hidden=3), SGD(0.3))
    assert build({"model": ImportedModule("torch.nn:ReLU", nn.ReLU)}).model.module is nn.ReLU


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--cohort.fraction=0.1", "--evaluate.target_accuracy=0.9", '--run.name=it\'s "quoted"'),
        ("--data.name=synthetic", "--data.args={num_train = 50, shape = [1, 8, 8]}", "--data.partition.name=quantity"),
        ("--model.name=torch.nn:Linear", "--model.in_features=3", "--model.out_features=2", "--cohort.size=2"),
        (
            "--algorithm.weighting=uniform",
            "--algorithm.server_optimizer.lr=0.7",
            "--client.optimizer.nesterov=true",
            "--client.optimizer.momentum=0.5",
        ),
    ],
)
def test_the_printed_configuration_builds_the_same(argv):
    config = configured(*argv)
    assert build(tomllib.loads(to_toml(config))) == config


def test_a_configuration_file_is_read_back(tmp_path):
    config = configured("--run.seed=9", "--model.name=mlp")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert build(read_toml(tmp_path / "config.toml")) == config


def test_flatten_gives_dotted_keys():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}) == {"a": 1, "b.c": 2, "b.d.e": 3}
