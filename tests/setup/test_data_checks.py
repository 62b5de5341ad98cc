"""fedddp.setup.checks: rows that need data, a model, the machine or files, by their key and code."""

import numpy as np
import pytest
import torch
from torch import nn

from fedddp.clients import mixing_layers
from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data import Dataset, Examples, Partition
from fedddp.data.parts import write
from fedddp.secure import Identity, Roster
from fedddp.setup.checks import MACHINE, refuse
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task
from tests.helpers.checks import (
    CLIENT,
    EXAMPLE,
    INT8,
    MODULE,
    PERSONAL,
    PLACE,
    TEN,
    attack,
    checked_run,
    private,
    refused,
    rule,
    secure,
)

BATCH_NORM = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
SINGLE = {"fails_alone": "one value", "sizes": torch.tensor([1, 1, 0, 1])}
NOBODY = Partition.dealt(torch.arange(0).numpy(), torch.zeros(4, dtype=torch.long).numpy())
EXACT = {"aggregation": {"sum": "exact"}}


@pytest.mark.parametrize(
    ("code", "key", "layers", "facts"),
    [
        ("example-level-mixing", "model.name", [EXAMPLE], {"module": BATCH_NORM}),
        ("example-level-overlap", "data.partition.num_clients", [EXAMPLE], {"overlap": True}),
        (
            "parties-few",
            "privacy.secure_aggregation.enabled",
            [secure()],
            {"place": Place(world_size=2, local_world_size=2)},
        ),
        ("clients-remember", "checkpoint.clients_dir", [CLIENT, {"algorithm": {"name": "ditto"}}], {}),
        ("clients-remember", "checkpoint.clients_dir", [secure(), {"algorithm": {"name": "scaffold"}}], {}),
        ("contrast-features", "algorithm.name", [{"algorithm": {"name": "moon"}}], {"module": nn.Conv2d(1, 1, 1)}),
        (
            "batch-of-one",
            "client.batch_size",
            [{"client": {"batch_size": 1}}],
            {"fails_alone": "one value"},
        ),
        ("single-examples", "model.name", [], SINGLE),
        ("personal-byzantine", "evaluate.personal_every", [PERSONAL, attack("ipm", num_clients=4)], {"held": NOBODY}),
        (
            "compression-idle",
            "aggregation.compression.name",
            [{"aggregation": {"compression": {"name": "power_sgd", "rank": 4}}}],
            {"module": nn.Linear(40, 4)},
        ),
    ],
)
def test_data_or_a_model_that_do_not_fit_are_refused(code, key, layers, facts):
    error = refused(*layers, **facts)
    assert (error.code, error.key) == (code, key)


@pytest.mark.parametrize(
    ("code", "layer"),
    [
        ("task-target-accuracy", {"evaluate": {"target_accuracy": 0.9}}),
        ("task-target", {"evaluate": {"target": "f1>=0.5"}}),
        ("task-personal", PERSONAL),
        ("task-contrasts", {"algorithm": {"name": "moon"}}),
        ("task-example-level", EXAMPLE),
    ],
)
def test_a_task_without_classes_has_no_accuracy_features_or_gradients_per_example(code, layer):
    class Other(Task):
        draws = True
        sums = ()

    checked_run(layer)
    assert refused(layer, task=Other(lambda: MODULE, 40)).code == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("code", "run"),
    [
        ("device-without-gpu", {"device": "cuda"}),
        ("backend-without-gpu", {"backend": "nccl"}),
    ],
)
def test_a_machine_without_a_gpu(code, run):
    config = resolve(build({"run": run}), PLACE)
    with pytest.raises(UsageError) as error:
        refuse(MACHINE, config, config)
    assert error.value.code == code


def test_nccl_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = resolve(build({"run": {"device": "cpu", "backend": "nccl"}}), PLACE)
    with pytest.raises(UsageError) as error:
        refuse(MACHINE, config, config)
    assert error.value.code == "backend-on-cpu"


@pytest.mark.parametrize(
    ("code", "keys"), [("parts-args", {"args": {"num_train": 3}}), ("parts-placement", {"placement": "shared"})]
)
def test_divided_data_take_no_arguments_and_stay_with_their_owners(code, keys, tmp_path):
    examples = Examples(torch.rand(8, 40), torch.arange(8) % 2)
    owners = Partition.dealt(np.arange(8), np.full(4, 2))
    write(tmp_path / "p", Dataset.of(examples, examples), owners, data="x", table={"name": "iid"}, seed=0)
    divided = {"data": {"name": "parts", "root": str(tmp_path / "p")}}
    resolve(build(divided), PLACE)
    assert refused(divided, {"data": keys}).code == code


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [{"algorithm": {"name": "tests.plugins.own_algorithm:Bare"}}],
        [{"algorithm": {"name": "tests.plugins.own_algorithm:Bare"}}, EXAMPLE],
        [{"algorithm": {"name": "tests.plugins.own_algorithm:Bare"}}, CLIENT],
        [{"algorithm": {"name": "tests.plugins.own_algorithm:Bare"}}, INT8],
        [secure()],
        [TEN, attack("sign_flip"), secure()],
        [TEN, rule("krum", num_byzantine=3)],
        [TEN, rule("centered_clipping", momentum=0.5), {"algorithm": {"name": "fednova"}}],
        [TEN, rule("centered_clipping"), {"algorithm": {"name": "scaffold"}}],
        [TEN, rule("median"), EXACT],
        [TEN, rule("trimmed_mean", num_byzantine=4)],
        [TEN, rule("median"), EXAMPLE],
        [TEN, attack("backdoor", num_clients=0)],
        [INT8],
        [INT8, EXAMPLE],
        [EXAMPLE, {"algorithm": {"weighting": "examples"}}],
        [EXAMPLE, {"algorithm": {"name": "scaffold"}}],
        [EXAMPLE, {"algorithm": {"name": "fedper"}}],
        [CLIENT, {"algorithm": {"name": "ditto"}}, {"checkpoint": {"clients_dir": "own"}}],
        [secure(), {"algorithm": {"name": "fedprox"}}],
        [INT8, {"algorithm": {"name": "ifca"}}],
        [{"aggregation": {"compression": {"name": "top_k"}}}, {"algorithm": {"name": "scaffold"}}],
        [private("example", noise_multiplier=0.0)],  # clipping alone, with an infinite epsilon
        [private("client", noise_multiplier=0.0), {"algorithm": {"weighting": "uniform"}}],
        [private("example", target_epsilon=8.0)],
        [CLIENT, {"privacy": {"account": {"dir": "account", "key": "k", "epsilon": 3.0, "delta": 1e-6}}}],
        [{"cohort": {"size": 2}}, private("client", mechanism="tree", target_epsilon=8.0)],
        [{"cohort": {"size": 2}}, private("client", mechanism="banded_mf", bands=2)],
        [private("client", mechanism="banded_mf", bands=1)],  # every client in every round, independent noise
        [{"client": {"local_steps": 5}}],
        [{"client": {"local_epochs": 3, "stragglers": 0.5}}],
    ],
)
def test_what_can_run_is_not_refused(layers):
    checked_run(*layers)


def test_levels_refuse_only_what_breaks_their_own_guarantee():
    checked_run(CLIENT, module=BATCH_NORM, overlap=True)
    adaptive = private("client", clip=0.5, adaptive_clip={"enabled": True})
    assert checked_run(adaptive).noise_multiplier == 1.0


def test_a_message_has_the_values_that_its_remedy_needs():
    adaptive = private("client", clip=20.0, adaptive_clip={"enabled": True})
    assert "raise the bound to 20 " in str(refused(adaptive))
    assert "1/4 = 0.2" in str(refused(private("client", delta=0.3)))
    assert "11 clients per round (m >= 2 f + 3)" in str(refused(TEN, rule("krum", num_byzantine=4)))


def test_a_key_that_others_can_read_is_refused(tmp_path):
    identity = Identity.new()
    identity.save(tmp_path / "rank.key")
    (tmp_path / "rank.key").chmod(0o644)
    (tmp_path / "roster.toml").write_text("")
    keys = {"roster": str(tmp_path / "roster.toml"), "key": str(tmp_path / "rank.key")}
    assert refused(secure(**keys)).code == "identity-unreadable"


def test_a_key_of_another_rank_and_a_roster_of_other_ranks_are_refused_before_anything_starts(tmp_path):
    identities = {rank: Identity.new() for rank in range(4)}
    for rank, identity in identities.items():
        identity.save(tmp_path / f"rank-{rank}.key")
    (tmp_path / "roster.toml").write_text(Roster({rank: i.public for rank, i in identities.items()}).text())

    def keys(key):
        return secure(roster=str(tmp_path / "roster.toml"), key=str(tmp_path / key))

    second = Place(rank=1, world_size=4, local_world_size=4)
    checked_run(keys("rank-{rank}.key"), place=second)
    assert refused(keys("rank-0.key"), place=second).code == "key-foreign"
    three = Place(world_size=3, local_world_size=3)
    assert refused(keys("rank-{rank}.key"), place=three).code == "roster-size"


def test_the_layers_in_which_examples_meet():
    """GroupNorm and plain InstanceNorm look at one example; running statistics are of all."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)),
        nn.LayerNorm(4),
        nn.BatchNorm1d(4, track_running_stats=False),
    )
    assert mixing_layers(model) == ["1 (BatchNorm2d)", "2.2 (InstanceNorm2d)", "4 (BatchNorm1d)"]
