"""fedddp.config.words: short forms, bare names, shipped configurations, and what else people type."""

import os
import tomllib
from pathlib import Path

import pytest

from fedddp.config import Config, build, parse, to_toml
from fedddp.registry.shipped import shipped
from fedddp.registry.spelling import SHORT
from fedddp.train import main

SAME = [
    (["--rounds=7"], ["--run.rounds=7"]),
    (["--lr=0.5"], ["--client.optimizer.lr=0.5"]),
    (["--lr", "0.5"], ["--client.optimizer.lr=0.5"]),
    (["--clients=8"], ["--data.partition.num_clients=8"]),
    (["--epochs", "5"], ["--client.local_epochs=5"]),
    (["--batch-size=50"], ["--client.batch_size=50"]),
    (["--batch_size=50"], ["--client.batch_size=50"]),
    (["--seed=3"], ["--run.seed=3"]),
    (["--data=mnist"], ["--data.name=mnist"]),
    (["--model=mlp", "--model.hidden=5"], ["--model.name=mlp", "--model.hidden=5"]),
    (["--model", "torch.nn:ReLU"], ["--model.name=torch.nn:ReLU"]),
    (["--algorithm=fedprox"], ["--algorithm.name=fedprox"]),
    (["--client.optimizer=adam"], ["--client.optimizer.name=adam"]),
    (["--data.partition=dirichlet"], ["--data.partition.name=dirichlet"]),
    (["--aggregation.rule=median"], ["--aggregation.rule.name=median"]),
    (["--algorithm.server_optimizer=yogi"], ["--algorithm.server_optimizer.name=yogi"]),
    (["--client.execution=sequential"], ["--client.execution.name=sequential"]),
    (["algorithm.name=fedprox"], ["--algorithm.name=fedprox"]),
    (["run.rounds=7", "lr=0.5"], ["--run.rounds=7", "--client.optimizer.lr=0.5"]),
    (["--model={name = 'mlp', hidden = 5}"], ["--model.name=mlp", "--model.hidden=5"]),
]


def configured(words):
    return build(*parse(words).layers)


@pytest.mark.parametrize(("words", "long"), SAME)
def test_short_words_mean_long_ones(words, long):
    assert configured(words) == configured(long) != Config()


def test_every_short_form_is_understood():
    for form, key in SHORT.items():
        assert parse([f"--{form}=x"]).meant == {form: key}


def test_what_short_forms_stand_for_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--lr=0.1", "--lr=0.2", "--model=mlp", "--run.seed=1", "--print-config"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "fedddp: --lr stands for --client.optimizer.lr, --model stands for --model.name"
    ]
    assert main(["--run.seed=1", "--print-config"]) == 0
    assert capsys.readouterr().err == ""


def test_a_configuration_that_comes_with_the_package_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("mnist/fedavg_e5", "mnist/fedavg_e5.toml"):
        config = configured([word, "--lr=0.5"])
        assert (config.data.name, config.client.local_epochs, config.client.optimizer.lr) == ("mnist", 5, 0.5)
    Path("mnist").mkdir()
    Path("mnist/fedavg_e5").write_text("run.rounds = 3\n")  # a file of the user's is meant where there is one
    assert configured(["mnist/fedavg_e5"]) == configured(["--run.rounds=3"])


def test_all_configurations_are_shipped():
    root = Path(__file__).parents[2] / "configs"
    assert {path.resolve() for path in shipped().values()} == set(root.rglob("*.toml"))


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.rounds=5.toml").write_text("run.rounds = 3\n")
    assert configured(["run.rounds=5.toml"]).run.rounds == 3


def test_the_printed_configuration_is_what_differs_from_the_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--algorithm=fedprox", "--algorithm.mu=0.01", "--lr=0.1", "--run.rounds=7", "--data.args.a.b=1"]
    assert main([*words, "--print-config"]) == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert table == {"algorithm": {"name": "fedprox"}, "run": {"rounds": 7}, "data": {"args": {"a": {"b": 1}}}}
    assert main(["--run.rounds=10", "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == {}


@pytest.mark.parametrize("name", [name for name in shipped() if not name.startswith("sweeps/")])
def test_the_changes_of_a_configuration_build_it_again(name):
    config = configured([name])
    changes = tomllib.loads(to_toml(config, changed=True))
    assert build(changes) == config != Config()


@pytest.mark.parametrize("threads", [0, 2])
def test_all_keys_are_printed_without_the_threads_of_this_machine(threads, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"--run.threads={threads}", "--model=mlp", "--print-config=all"]) == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert table["run"]["threads"] == threads
    assert (table["run"]["name"], table["checkpoint"]["keep"]) == ("fedavg-mnist-mini-mlp", 3)
    assert os.listdir() == []
