"""``model.trainable``: what is frozen is neither sent nor kept for clients, and is the same on every rank."""

import pytest
import torch
from torch import nn

import fedddp
from fedddp.comm import Place
from fedddp.config import build
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.commands import command
from tests.helpers.distributed import configured, experiment_of, train

BODY = 8 * 64 + 8


class Net(nn.Sequential):
    """A body of 520 parameters with statistics, and a head of 45."""

    def __init__(self, body=8, seed=0):
        stream = torch.Generator().manual_seed(seed)
        super().__init__(nn.Flatten(), nn.Linear(64, body), nn.BatchNorm1d(body), nn.ReLU(), nn.Linear(body, 5))
        self[1].weight.data.normal_(generator=stream)


class Fixed(Net):
    """A model of which nothing trains."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


def head_alone() -> nn.Module:
    """A model of 45 parameters."""
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(8), nn.Linear(8, 5))


def table(tmp_path, name="Net", **sections):
    model = {"name": f"{__name__}:{name}"} | ({"trainable": ["4.*"]} if name == "Net" else {})
    tables = configured(tmp_path, data__args={"shape": [1, 8, 8], "num_classes": 5}, **sections)
    return tables | {"model": model | sections.get("model", {})}


def prepared(tables):
    return prepare(resolve(build(tables), Place()), Place())


def test_only_what_matches_trains_and_is_in_the_vector(tmp_path):
    p = prepared(table(tmp_path))
    assert p.spec.names == ("4.weight", "4.bias")
    assert p.spec.dim == 45
    assert p.trainer[1].endswith("layers folded over clients")


def test_all_modules_of_a_rank_hold_the_frozen_part_once(tmp_path):
    task = prepared(table(tmp_path)).task
    first, second = task.model(0), task.model(0)
    assert first[1].weight.data_ptr() == second[1].weight.data_ptr()
    assert first[2].running_mean.data_ptr() == second[2].running_mean.data_ptr()
    assert first[4].weight.data_ptr() != second[4].weight.data_ptr()


def test_a_pattern_without_a_match_is_one_line(tmp_path):
    with pytest.raises(fedddp.UsageError, match=r"^model.trainable: 'head.\*' matches no parameter"):
        prepared(table(tmp_path, model={"trainable": ["4.*", "head.*"]}))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (['--model.trainable=["4.*", "fc.*"]'], "model.trainable: 'fc.*' matches no parameter; there are 1.weight, "),
        (["--model.trainable=[]", f"--model.name={__name__}:Fixed"], "Fixed has no trainable parameter"),
        (['--model.trainable=["1.*"]', f"--model.name={__name__}:Fixed"], "Fixed has no trainable parameter"),
    ],
    ids=["no match", "all frozen", "what matches is frozen"],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys, words, says):
    keys = [f"--run.dir={tmp_path / 'runs'}", "--data.name=synthetic", "--data.args.shape=[1,8,8]"]
    assert command("train")([f"--model.name={__name__}:Net", "--data.args.num_classes=5", *keys, *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if says in line]
    assert len(lines) == 1
    assert not (tmp_path / "runs").exists()


def test_ranks_with_other_frozen_weights_do_not_match(tmp_path):
    sums = [prepared(table(tmp_path, model={"seed": seed})).signature["model parameters"] for seed in (0, 0, 1)]
    assert sums[0] == sums[1] != sums[2]


class Unseeded(Net):
    """Its frozen body is another one each time."""

    def __init__(self):
        super().__init__(seed=torch.Generator().seed())


def test_a_frozen_part_that_does_not_follow_the_seed_is_refused(tmp_path):
    tables = table(tmp_path)
    tables["model"]["name"] = f"{__name__}:Unseeded"
    with pytest.raises(fedddp.UsageError, match=r"two models of one run.seed differ"):
        prepared(tables)


def test_the_model_of_the_run_has_its_frozen_part(tmp_path):
    result = fedddp.run(table(tmp_path, checkpoint={"every": 1}), run={"name": "frozen"})
    kept, found = fedddp.load(tmp_path / "runs" / "frozen").state_dict(), result.module.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in found.items())
    assert torch.equal(found["1.weight"], Net()[1].weight)
    assert not torch.equal(found["4.weight"], prepared(table(tmp_path)).task.model(0)[4].weight)
    best = fedddp.load(tmp_path / "runs" / "frozen", round=1)
    assert torch.equal(best[1].weight, Net()[1].weight)


def state_of(comm, tables):
    experiment = experiment_of(comm, tables)
    f, server = experiment.federation, experiment.server
    return {name: tuple(t.shape) for name, t in f.algorithm.init_client(server).items()}


@pytest.mark.slow
def test_a_rank_sends_what_a_model_of_the_trainable_part_alone_sends(run_ranks, tmp_path):
    sent = [
        [round["sent"]["aggregate"] for round in run_ranks(train, 2, table(tmp_path, name))[0]["history"]]
        for name in ("Net", "head_alone")
    ]
    assert sent[0] == sent[1]


@pytest.mark.slow
def test_client_state_has_the_length_of_the_trainable_part(run_ranks, tmp_path):
    (shapes,) = run_ranks(state_of, 1, table(tmp_path, algorithm={"name": "scaffold"}))
    assert shapes == {"control": (1, 45)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"sum": "exact"}},
        {"privacy__secure_aggregation": {"enabled": True}},
        {"privacy": {"level": "example", "noise_multiplier": 1.0, "randomness": "seeded"}, "algorithm": {}},
        {"aggregation__compression": {"name": "int8"}},
        {"algorithm": {"name": "ditto"}},
    ],
    ids=["exact", "secure", "example", "int8", "ditto"],
)
def test_ranks_agree_and_the_frozen_part_stays_out(run_ranks, tmp_path, sections):
    ranks = run_ranks(train, 3, table(tmp_path, **sections))
    assert len({rank["sha256"] for rank in ranks}) == 1
    assert {len(rank["w"]) for rank in ranks} == {45}
    assert ranks[0]["history"][-1]["participants"]
