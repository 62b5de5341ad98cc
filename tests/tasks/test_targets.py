"""Runs on targets that are no classes: two ranks, resume, other algorithms, held-out clients, refusals."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fedddp
from fedddp.data import Dataset
from fedddp.train import main
from tests.helpers.commands import command

WORDS = ["--telemetry.progress=off", "--telemetry.tensorboard=false"]


def numbers(n=120, d=4, seed=0):
    """A linear target with a large offset, and noise."""
    torch.manual_seed(seed)
    x = torch.randn(n, d)
    return x, 500 + 20 * (x @ torch.linspace(-1, 1, d)) + torch.randn(n)


def labels(n=240):
    torch.manual_seed(0)
    x = torch.randn(n, 6)
    return x, (x @ torch.randn(6, 3) > 0).to(torch.uint8)


def sequences(n=80, t=7, v=5):
    """Each token is the one before plus 1 (mod v - 1), from 1; the last positions of some are padding."""
    torch.manual_seed(0)
    first, steps = torch.randint(1, v, (n, 1)), torch.arange(t + 1)
    text = 1 + (first - 1 + steps) % (v - 1)
    x, y = text[:, :-1].clone(), text[:, 1:].clone()
    x[::3, 5:], y[::3, 5:] = 0, -100
    return x, y


class Chain(torch.nn.Module):
    """Scores [B, T, V] from each token alone."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.table(x))


KINDS = {
    "regression": (numbers, "real", {"name": "logistic"}, 0.05),
    "multilabel": (labels, "labels", {"name": "logistic"}, 0.5),
    "next_token": (sequences, "positions", Chain, 0.5),
}


def run(tmp_path, kind, **sections):
    make, targets, model, lr = KINDS[kind]
    x, y = make()
    cut = len(x) * 3 // 4
    data = Dataset.of((x[:cut], y[:cut]), (x[cut:], y[cut:]), targets=targets)
    base = {
        "data": {"partition": {"num_clients": 4}},
        "run": {"rounds": 6, "dir": str(tmp_path), "name": kind},
        "client": {"batch_size": 5, "optimizer": {"lr": lr}},
        "telemetry": {"progress": "off", "tensorboard": True},
    }
    for name, keys in sections.items():
        base[name] = {**base.get(name, {}), **keys} if isinstance(base.get(name, {}), dict) else keys
    task = base.pop("task", {"name": kind})
    return fedddp.run(base, dataset=data, model=model, task=task)


@pytest.mark.parametrize(("kind", "metric", "at_least"), [("regression", "r2", 0.95), ("multilabel", "auroc", 0.95)])
def test_it_learns(tmp_path, kind, metric, at_least):
    result = run(tmp_path, kind)
    assert result.summary[f"final_test_{metric}"] > at_least
    assert list(result.summary)[1] == f"final_test_{metric}"
    assert list(result.history[-1])[1] == f"test_{metric}"


def test_a_language_is_learned_and_padding_ignored(tmp_path):
    result = run(tmp_path, "next_token", run={"rounds": 12, "dir": str(tmp_path), "name": "text"})
    assert result.summary["final_test_perplexity"] < 1.1
    assert result.summary["final_test_accuracy"] == 1


def spelled(tokens):
    return "".join("_abcd"[token] for token in tokens)


def test_a_sample_of_text_is_shown_and_may_fail(tmp_path, capsys, caplog):
    x, y = sequences()
    data = Dataset.of((x[:60], y[:60]), (x[60:], y[60:]), targets="positions")
    model = {"name": "lstm", "hidden": 16, "layers": 1}
    words = {"task": {"name": "next_token", "sample_length": 40}, "run": {"rounds": 2, "dir": str(tmp_path)}}
    client = {"optimizer": {"lr": 1.0}, "local_epochs": 3, "batch_size": 5}
    for name, decode in (("shown", spelled), ("failing", lambda tokens: 1 / 0)):
        words["run"]["name"] = name
        result = fedddp.run(words, dataset=replace(data, decode=decode), model=model, client=client)
        assert result.summary["rounds"] == 2
        (events,) = (result.folder / "tensorboard").glob("events*")
        assert (b"sample/text_summary" in events.read_bytes()) == (name == "shown")
    assert "sample: '" in capsys.readouterr().out
    assert caplog.text.count("the model's texts cannot be shown (division by zero") == 2


@pytest.mark.parametrize("algorithm", ["scaffold", "ditto", "fednova", "fedprox"])
@pytest.mark.parametrize("kind", KINDS)
def test_algorithms_learn_every_kind(tmp_path, kind, algorithm):
    result = run(tmp_path, kind, algorithm={"name": algorithm})
    first, last = (result.history[i]["test_loss"] for i in (0, -1))
    assert last < first


@pytest.mark.parametrize(
    "aggregation",
    [
        {"compression": {"name": "int8"}},
        {"compression": {"name": "top_k", "share": 0.5}},
        {"rule": {"name": "median"}},
        {"rule": {"name": "krum"}},
        {"sum": "exact"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_and_robust_sums_learn_every_kind(tmp_path, kind, aggregation):
    result = run(tmp_path, kind, aggregation=aggregation, data={"partition": {"num_clients": 5}})
    first, last = (result.history[i]["test_loss"] for i in (0, -1))
    assert last < first


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_examples_of_clients(tmp_path, kind):
    result = run(tmp_path, kind, evaluate={"holdout": 0.2, "personal_every": 6}, algorithm={"name": "ditto"})
    measured = {"regression": "mae"}.get(kind, "accuracy")
    last = result.history[-1]
    worst, mean = (last[f"global_on_clients_{measured}_{figure}"] for figure in ("worst10", "mean"))
    assert (worst >= mean) if measured == "mae" else (worst <= mean)
    assert result.summary[f"final_personal_{measured}_mean"] == last[f"personal_{measured}_mean"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_of_ones_own_metric_ends_the_run(tmp_path, kind):
    target = {"regression": "mae<=1000", "multilabel": "f1>=0.01", "next_token": "perplexity<=1000"}[kind]
    result = run(tmp_path, kind, evaluate={"target": target})
    assert (result.summary["rounds"], result.summary["rounds_to_target"]) == (1, 1)


def test_the_best_model_is_that_of_the_best_metric(tmp_path):
    result = run(tmp_path, "regression", client={"batch_size": 5, "optimizer": {"lr": 1.2}})  # overshoots
    found = [m["test_r2"] for m in result.history]
    from fedddp.checkpoints.saved import candidates

    best = max(candidates(result.folder, 99), key=lambda c: c.quality)
    assert best.quality == max(found)


@pytest.mark.parametrize("level", ["client", "example"])
@pytest.mark.parametrize("kind", KINDS)
def test_private_training(tmp_path, kind, level):
    privacy = {"level": level, "noise_multiplier": 0.3, "randomness": "seeded", "clip": 1.0, "delta": 0.001}
    result = run(tmp_path, kind, privacy=privacy)
    assert result.history[-1]["epsilon"] > 0
    assert result.history[-1]["test_loss"] is not None


CSV = "a,b,y,who\n" + "".join(f"{i % 7},{i % 5},{i / 10},{i % 3}\n" for i in range(60))


@pytest.fixture
def table(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(CSV)
    return [*WORDS, "--data.name=csv", "--data.root=.", "--data.args.file=t.csv", "--model.name=logistic"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.args.target=y"], "set task.name=regression to learn numbers"),
        (["--data.args.target=b", "--task.name=binary"], "task.name='binary': the data have 5 classes, not 2"),
        (
            ["--data.args.target=y", "--task.name=regression", "--loss.name=focal"],
            "use loss.name=auto, or one of",
        ),
        (["--data.args.target=y", "--task.name=multilabel"], "rows [n, L] of 0 and 1"),
        (
            ["--data.args.target=y", "--task.name=regression", "--attack.name=label_flip", "--attack.num_clients=1"],
            "gives examples other classes",
        ),
        (["--data.args.target=y", "--task.name=regression", "--data.partition.name=shards"], "by their classes"),
        (["--data.args.target=y", "--task.name=regression", "--evaluate.target=accuracy>=0.9"], "has no accuracy"),
        (["--data.args.target=y", "--task.name=regression", "--evaluate.target=r2>0.9"], "evaluate.target"),
        (["--data.name=mnist-mini", "--task.name=regression"], "use task.name=classification"),
    ],
)
def test_what_does_not_fit_is_one_line(table, words, told, capsys, tmp_path):
    assert main([w for w in (*table, *words) if "--data.name=mnist-mini" not in words or "args" not in w]) == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert told in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_ranks_learn_and_measure_what_one_does_and_resume(table, tmp_path):
    words = [*table, "--data.args.target=y", "--task.name=regression", "--data.partition.num_clients=4"]
    words += ["--aggregation.sum=exact", "--run.rounds=3", "--client.optimizer.lr=0.05"]
    ends = {}
    for ranks in (1, 2):
        name = f"r{ranks}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        command += ["fedddp.train", *words, f"--run.name={name}"]
        first = subprocess.run([*command, "--run.rounds=2"], env=os.environ, capture_output=True, text=True)
        assert first.returncode == 0, first.stderr
        again = subprocess.run([*command, "--run.resume=auto"], env=os.environ, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        ends[ranks] = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
    assert ends[1]["model_sha256"] == ends[2]["model_sha256"]
    for figure in ("r2", "mae", "rmse"):
        assert ends[1][f"final_test_{figure}"] == pytest.approx(ends[2][f"final_test_{figure}"], rel=1e-12)


def test_numbers_that_were_divided_train_as_the_whole_does(table, tmp_path):
    """Also the mean and the deviation of the targets are those of the whole."""
    words = [*table, "--data.args.target=y", "--task.name=regression", "--data.partition.num_clients=4"]
    assert command("split")([*words, "--out=parts"]) == 0
    parts = [*WORDS, "--data.name=parts", "--data.root=parts", "--task.name=regression", "--model.name=logistic"]
    for name, own in (("whole", words), ("divided", parts)):
        assert main([*own, "--run.rounds=2", "--client.optimizer.lr=0.05", f"--run.name={name}"]) == 0
    whole, divided = (json.loads((tmp_path / f"runs/{name}/summary.json").read_text()) for name in ("whole", "divided"))
    assert divided["model_sha256"] == whole["model_sha256"]
    assert divided["final_test_mae"] == whole["final_test_mae"]
