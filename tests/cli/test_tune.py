"""fedddp tune: folds of each client's own examples, and what is chosen by them."""

import json
import math
import tomllib

import numpy as np
import pytest
import torch

from fedddp.config import build, read_toml
from fedddp.data import datasets
from fedddp.data.partition import Partition
from fedddp.data.partition.base import fold_sizes, without_fold
from fedddp.data.parts import Divided
from fedddp.telemetry.tuning import Candidate, chosen
from tests.helpers.commands import command

main = command("tune")

SIZES = np.array([7, 1, 12, 0, 5])
ORDER = np.random.default_rng(0).permutation(40)[: SIZES.sum()]
WORDS = (
    "--data.name=synthetic",
    "--data.args={num_train = 160, num_test = 10, num_classes = 4, shape = [1, 6, 6], noise = 0.2}",
    "--data.partition.num_clients=4",
    "--model.name=logistic",
    "--run.rounds=1",
    "--run.threads=1",
    "--run.name=small",
)


def partition():
    return Partition.dealt(ORDER, SIZES)


def test_folds_of_a_client_are_disjoint_and_together_all_of_it():
    seen = {client: [] for client in range(5)}
    for fold in range(3):
        kept, held = without_fold(partition(), fold, 3, seed=0)
        for client in range(5):
            own = set(partition().indices(client).tolist())
            rows, rest = held[client].tolist(), kept.indices(client).tolist()
            assert set(rows) | set(rest) == own
            assert len(rows) + len(rest) == len(own)
            seen[client] += rows
        assert [len(held[client]) for client in range(5)] == fold_sizes(SIZES, fold, 3).tolist()
        assert kept.sizes.tolist() == (SIZES - fold_sizes(SIZES, fold, 3)).tolist()
    assert {client: sorted(rows) for client, rows in seen.items()} == {
        client: sorted(partition().indices(client).tolist()) for client in range(5)
    }


def test_folds_are_of_the_seed():
    def held(seed):
        return without_fold(partition(), 0, 2, seed=seed)[1][2].tolist()

    assert held(0) == held(0) != held(1)


def test_at_most_so_many_examples_and_not_the_first_ones():
    kept, held = without_fold(partition(), 0, 2, seed=0, most=6)
    assert kept.sizes.tolist() == [3, 0, 3, 0, 2]
    assert [len(held[k]) for k in range(5)] == [3, 1, 3, 0, 3]
    assert set(held[2].tolist()) | set(kept.indices(2).tolist()) != set(partition().indices(2)[:6].tolist())


def test_of_clients_elsewhere_the_sizes_are_enough():
    """As a rank sees data that lie divided: it holds clients 0, 2 and 4."""
    n = 7 + 12 + 5
    divided = Divided(np.arange(n), np.array([0, n, 7, n, 19]), SIZES, public=None)
    kept, held = without_fold(divided, 1, 3, seed=0)
    assert isinstance(kept, Divided)
    assert kept.sizes.tolist() == (SIZES - fold_sizes(SIZES, 1, 3)).tolist()
    assert {k for k in held if len(held[k])} == {0, 2, 4}
    for client, own in ((0, range(7)), (2, range(7, 19)), (4, range(19, 24))):
        assert set(kept.indices(client).tolist()) | set(held[client].tolist()) == set(own)


def test_the_best_mean_is_chosen_and_of_equals_the_lowest_loss():
    a, b = Candidate({"x.y": 1}, [0.5, 0.7], [1.0, 1.0]), Candidate({"x.y": 2}, [0.6, 0.6], [0.5, 0.9])
    c = Candidate({"x.y": 3}, [0.9, 0.2], [0.1, 0.1])
    assert chosen([a, b, c]) is b
    assert a.deviation == pytest.approx(0.1 * 2**0.5)


def test_the_best_is_that_of_the_metrics_direction():
    a, b = (Candidate({"x.y": n}, values, [1.0, 1.0], "perplexity") for n, values in ((1, [9.0, 8.0]), (2, [7.0, 9.0])))
    assert chosen([a, b]) is b
    some = Candidate({"x.y": 3}, [None, 0.7], [1.0, 1.0], "auroc")  # a fold without a yes
    assert (some.mean, some.deviation) == (0.7, None)
    diverged = Candidate({"x.y": 4}, [None, 0.9], [math.inf, 1.0], "r2")
    assert (diverged.mean, chosen([diverged, some])) == (None, some)


def test_a_good_choice_is_found_written_and_trains_as_written(tmp_path, capsys):
    """A learning rate of 1e-6 learns nothing."""
    words = [*WORDS, "--grid", "client.optimizer.lr=1e-6,0.1", "--grid=client.batch_size=5,10", "--folds=2"]
    assert main([*words, f"--run.dir={tmp_path}"]) == 0
    folder = tmp_path / "small-tune"
    results = json.loads((folder / "results.json").read_text())
    assert [c["parameters"] for c in results["candidates"]] == [
        {"client.optimizer.lr": lr, "client.batch_size": size} for lr in (1e-6, 0.1) for size in (5, 10)
    ]
    assert results["chosen"]["client.optimizer.lr"] == 0.1
    by_lr = {c["parameters"]["client.optimizer.lr"]: c["mean"] for c in results["candidates"]}
    assert by_lr[0.1] > 0.8 > by_lr[1e-6] + 0.1
    table = tomllib.loads((folder / "chosen.toml").read_text())
    assert table == {"client": {"optimizer": {"lr": 0.1}, "batch_size": results["chosen"]["client.batch_size"]}}
    assert build(read_toml(folder / "chosen.toml")).client.optimizer.lr == 0.1
    assert (folder / "results.md").read_text().count("\n") == 6
    assert "2-fold cross-validation" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["small-tune"]  # no run folder of a fold
    assert main([*words, f"--run.dir={tmp_path}", "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results


def test_a_regression_is_tuned_by_its_own_metric(tmp_path, monkeypatch, capsys):
    """In R2 more is better; a learning rate of 1e-6 learns nothing."""
    monkeypatch.setitem(datasets.DATASETS, "line", line)
    words = ["--data.name=line", "--task.name=regression", *(w for w in WORDS if not w.startswith("--data."))]
    assert main([*words, "--grid", "client.optimizer.lr=1e-6,0.1", "--folds=2", f"--run.dir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "small-tune" / "results.json").read_text())
    low, high = (c["mean"] for c in results["candidates"])
    assert high > 0.9 > low
    assert [c["metric"] for c in results["candidates"]] == ["r2", "r2"]
    assert results["chosen"]["client.optimizer.lr"] == 0.1
    assert f"client.optimizer.lr=0.1: r2 {high:.4f}, " in capsys.readouterr().out


def line(root, download, targets="class"):
    """Numbers with a linear target."""
    x = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    y = 100 + x @ torch.tensor([1.0, -2.0, 3.0, 0.5])
    return datasets.Dataset.of((x[:150], y[:150]), (x[150:], y[150:]), targets=targets)


def test_the_score_is_that_of_the_fold_left_out(tmp_path, monkeypatch):
    """Training examples and those scored are disjoint, for every client, and the test set is not among them."""
    from fedddp.cli import tune

    seen = []
    prepare = tune.prepare

    def noting(config, place, dataset, partition):
        seen.append((dataset, partition))
        return prepare(config, place, dataset, partition)

    monkeypatch.setattr(tune, "prepare", noting)
    assert main([*WORDS, "--grid=client.optimizer.lr=0.1", "--folds=2", f"--run.dir={tmp_path}"]) == 0
    scored = []
    for dataset, kept in seen[1:]:
        trained_on = dataset.train.x[torch.from_numpy(kept.order).long()].flatten(1)
        assert len(kept.order) == len(dataset.test) == 80
        assert torch.cdist(dataset.test.x.flatten(1).double(), trained_on.double()).min() > 0
        scored.append(dataset.test.y)
    assert torch.cat(scored).bincount().tolist() == seen[0][0].train.y.bincount().tolist()


@pytest.mark.parametrize(
    "owners",
    [
        [range(80), range(79, 160)],
        [range(10), range(9, 20), range(20, 40), range(40, 60)],
        [[0, 1, 2, 3], [4, 5, 6, 7], [0, 8, 9, 10], range(100, 160)],
    ],
)
def test_clients_that_share_one_example_are_enough_to_refuse(tmp_path, owners, capsys):
    (tmp_path / "owners.json").write_text(json.dumps([list(own) for own in owners]))
    words = [w for w in WORDS if "num_clients" not in w] + [f"--data.partition.path={tmp_path}/owners.json"]
    words += ["--data.partition.name=file", "--grid=client.optimizer.lr=0.1", f"--run.dir={tmp_path / 'runs'}"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "data.partition.name='file': clients' examples overlap here" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give what to choose from: --grid KEY=VALUE"),
        (["--grid=lr"], "--grid=lr: should be section.key=value,value"),
        (["--grid=data.partition.num_clients=2,4"], "the folds are of one dataset"),
        (["--grid=client.optimizer.lr=0.1,-1"], "client.optimizer.lr=-1: should be greater than 0"),
        (
            ["--grid=client.optimizer.lr=0.1", "--folds=1"],
            "--folds: '1' should be a whole number of at least 2",
        ),
        (["--grid=client.optimizer.lr=0.1", "--folds=500"], "--folds=500: the clients of some rank have too few"),
        (
            ["--grid=run.seed=0", "--data.args.shape=[1, 8, 8]", "--task.name=conditional_gan", "--model.name=gan"],
            "task.name='conditional_gan': has no metric to choose by",
        ),
        (
            ["--grid=client.optimizer.lr=0.1", "--data.partition.name=overlapping", "--data.partition.num_clients=20"],
            "data.partition.name='overlapping': clients' examples overlap",
        ),
        (["--grid=client.optimizer.lr=0.1", "--privacy.level=client"], "every combination would spend a budget"),
        (["--grid=privacy.level=none,client"], "every combination would spend a budget"),
        (["--grid=privacy.secure_aggregation.enabled=false,true"], "privacy.secure_aggregation.enabled=true: each"),
        (["--grid=privacy.clip=1,0.5"], "privacy.clip=0.5"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(tmp_path, words, told, capsys):
    assert main([*WORDS, *words, f"--run.dir={tmp_path}"]) == 2
    out, message = capsys.readouterr()
    assert told in message
    assert message.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


RANGES = ("--range=client.optimizer.lr=0.01:0.5:log", "--grid=client.batch_size=5,10", "--folds=2")


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """trials(n, *words) searches in a folder, and returns what its results have."""
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)

    def run(count, *words, code=0):
        assert main([*WORDS, *(words or RANGES), f"--trials={count}"]) == code
        return json.loads((tmp_path / "runs/small-trials/results.json").read_text()) if code == 0 else None

    return run


@pytest.mark.slow
def test_trials_are_proposed_within_their_ranges_and_go_on_where_they_were(trials, capsys):
    first = trials(2)["candidates"]
    both = trials(4)
    assert len(both["candidates"]) == 4
    assert both["candidates"][:2] == first
    assert "goes on after 2 trials" in capsys.readouterr().err
    tried = [candidate["parameters"] for candidate in both["candidates"]]
    assert all(0.01 <= one["client.optimizer.lr"] <= 0.5 and one["client.batch_size"] in (5, 10) for one in tried)
    assert len({one["client.optimizer.lr"] for one in tried}) == 4
    best = max(both["candidates"], key=lambda c: c["mean"])
    assert both["chosen"] == best["parameters"]
    trials(4, RANGES[0], "--folds=2", code=2)
    assert "holds trials of another search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--range=client.optimizer.lr=0.1:0.2"], "add --trials=N"),
        (["--trials=2", "--range=client.optimizer.lr=0.1"], "should be section.key=LOW:HIGH"),
        (["--trials=2", "--range=client.optimizer.lr=0.2:0.1"], "from a smaller number to a larger one"),
        (["--trials=2", "--range=client.optimizer.lr=0:1:log"], "with :log above 0"),
        (["--trials=2", "--range=data.seed=1:2"], "tune them in runs apart"),
        (["--trials=2"], "give what to choose from"),
    ],
)
def test_mistakes_in_ranges_are_one_line(words, told, capsys):
    assert main([*WORDS, *words]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
