"""fedddp.setup.checks: every row of the table refuses what it is there for, by its key and code, and nothing else."""

import re

import pytest
import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import Config, UsageError, build
from fedddp.data import Partition
from fedddp.flat import FlatSpec
from fedddp.registry.choice import keys_of
from fedddp.secure import Identity, Roster
from fedddp.setup.checks import MACHINE, TABLE, Facts, refuse
from fedddp.setup.checks.privacy import mixing_layers
from fedddp.setup.load import checked
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task

SIZES = torch.tensor([10, 30, 0, 20])
PLACE = Place(world_size=4, local_world_size=4)
MODULE = nn.Linear(40, 40)
TASK = Task(lambda: MODULE, 40)
BATCH_NORM = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
SEEN: set[str] = set()
"""Codes that the tests of this file have met."""


def secure(**keys):
    return {"privacy": {"secure_aggregation": {"enabled": True, **keys}}}


def private(level, **keys):
    noise = {} if "noise_multiplier" in keys or "target_epsilon" in keys else {"noise_multiplier": 1.0}
    return {"privacy": {"level": level, **noise, **keys}}


def rule(name, **keys):
    return {"aggregation": {"rule": {"name": name, **keys}}}


def attack(name, **keys):
    return {"attack": {"name": name, **keys}}


def checked_run(*layers, place=PLACE, sizes=None, module=MODULE, task=TASK, **facts):
    """The configuration that passed all checks of configuration, data and model."""
    config = resolve(build({"client": {"batch_size": 5}, "run": {"rounds": 3}}, *layers), place)
    if sizes is None:
        sizes = SIZES if config.num_clients == len(SIZES) else torch.full((config.num_clients,), 20)
    return checked(Facts(config, place, task, module, FlatSpec.of(module), sizes, **facts))


def refused(*layers, **facts):
    """The error of a run that is refused: one line that begins with its key."""
    with pytest.raises(UsageError) as caught:
        checked_run(*layers, **facts)
    error = caught.value
    SEEN.add(error.code)
    assert str(error).startswith(error.key)
    assert "\n" not in str(error)
    return error


TEN = {"data": {"partition": {"num_clients": 10}}}
POWER = {"cohort": {"size": 2, "sampler": {"name": "power_of_choice"}}}
IFCA = {"algorithm": {"name": "ifca", "clusters": 2}}
CLIENT, EXAMPLE = private("client"), private("example")
PERSONAL = {"evaluate": {"personal_every": 1, "holdout": 0.2}}
MEAN = {"evaluate": {"clients_mean": True}}
INT8 = {"aggregation": {"compression": {"name": "int8"}}}
ADAM = {"client": {"optimizer": {"name": "adam"}}}
EXACT = {"aggregation": {"sum": "exact"}}
ADAPTIVE = {"privacy": {"adaptive_clip": {"enabled": True}}}
RANK_4 = {"aggregation": {"compression": {"name": "power_sgd", "rank": 4}}}
TWO = Place(world_size=2, local_world_size=2)
SINGLE = {"fails_alone": "one value", "sizes": torch.tensor([1, 1, 0, 1])}
NOBODY = Partition.dealt(torch.arange(0).numpy(), torch.zeros(4, dtype=torch.long).numpy())

CONFIGURATIONS = [
    ("cohort-size", "cohort.size", [{"cohort": {"size": 5}}]),
    ("cohort-twice", "cohort.size", [{"cohort": {"size": 3, "fraction": 0.5}}]),
    ("work-twice", "client.local_steps", [{"client": {"local_steps": 5, "local_epochs": 2}}]),
    ("stragglers-none", "client.drop_stragglers", [{"client": {"drop_stragglers": True}}]),
    ("stragglers-full", "client.stragglers", [{"client": {"stragglers": 0.5}}]),
    (
        "stragglers-client-level",
        "client.drop_stragglers",
        [CLIENT, {"client": {"local_epochs": 2, "stragglers": 0.5, "drop_stragglers": True}}],
    ),
    ("sampler-private", "cohort.sampler.name", [CLIENT, POWER]),
    ("sampler-masked", "cohort.sampler.name", [secure(), POWER]),
    ("sampler-clusters", "cohort.sampler.name", [IFCA, POWER]),
    (
        "sampler-weighting",
        "algorithm.weighting",
        [{"cohort": {"size": 2, "sampler": {"name": "size"}}, "algorithm": {"weighting": "examples"}}],
    ),
    ("personal-holdout", "evaluate.personal_every", [{"evaluate": {"personal_every": 3}}]),
    ("personal-private", "evaluate.personal_every", [secure(), PERSONAL]),
    ("personal-private", "evaluate.personal_every", [EXAMPLE, PERSONAL]),
    ("clients-mean-private", "evaluate.clients_mean", [secure(), MEAN]),
    ("clients-mean-private", "evaluate.clients_mean", [CLIENT, MEAN]),
    ("clients-mean-clusters", "evaluate.clients_mean", [IFCA, MEAN]),
    ("exact-width", "client.execution.width", [EXACT, {"client": {"execution": {"width": 4}}}]),
    *(
        (code, "algorithm.name", [other, {"algorithm": {"name": name, **keys}}])
        for code, other, name, keys in (
            ("algorithm-optimizer", ADAM, "scaffold", {}),
            (
                "algorithm-optimizer",
                {"client": {"optimizer": {"name": "adam"}}},
                "fedper",
                {"inner": {"name": "fednova"}},
            ),
            ("algorithm-example-level", EXAMPLE, "scaffold", {"option": 1}),
            ("algorithm-example-level", EXAMPLE, "ditto", {}),
            ("algorithm-example-level", EXAMPLE, "apfl", {}),
            ("algorithm-example-level", EXAMPLE, "fedrep", {}),
            ("algorithm-example-level", EXAMPLE, "personal", {"inner": {"name": "ditto"}}),
            ("contrast-example-level", EXAMPLE, "moon", {}),
            ("algorithm-losses", EXAMPLE, "qffl", {}),
            ("algorithm-losses", CLIENT, "ifca", {}),
            ("algorithm-client-level", CLIENT, "scaffold", {}),
            ("algorithm-client-level", CLIENT, "feddyn", {}),
            ("algorithm-client-level", CLIENT, "fednova", {}),
            ("algorithm-client-level", CLIENT, "fedbn", {"inner": {"name": "scaffold"}}),
            ("algorithm-lossy", INT8, "scaffold", {}),
            ("algorithm-lossy", secure(bits=32), "feddyn", {}),
            ("algorithm-late", {"aggregation": {"compression": {"name": "top_k"}}}, "ifca", {}),
        )
    ),
    ("attack-count", "attack.num_clients", [TEN, attack("ipm", num_clients=11)]),
    ("rule-compressed", "aggregation.rule.name", [TEN, rule("krum"), INT8]),
    ("rule-masked", "aggregation.rule.name", [TEN, rule("krum"), secure()]),
    ("rule-client-level", "aggregation.rule.name", [TEN, rule("norm_bound"), CLIENT]),
    ("attack-compressed", "attack.name", [TEN, attack("alie"), INT8]),
    ("attack-masked", "attack.name", [TEN, attack("alie"), secure()]),
    ("attack-client-level", "attack.name", [TEN, attack("alie"), CLIENT]),
    ("rule-clients", "aggregation.rule.name", [TEN, rule("krum", num_byzantine=4)]),
    ("rule-clients", "aggregation.rule.name", [TEN, rule("krum"), attack("ipm", num_clients=4)]),
    ("rule-clients", "aggregation.rule.name", [TEN, rule("trimmed_mean", num_byzantine=5)]),
    ("rule-clients", "aggregation.rule.name", [TEN, rule("krum"), {"cohort": {"size": 4}}]),
    ("rule-clients", "aggregation.rule.name", [TEN, rule("multi_krum", num_byzantine=2, selected=9)]),
    *(
        (
            "rule-momentum",
            "aggregation.rule.momentum",
            [TEN, rule("centered_clipping", momentum=0.5), {"algorithm": {"name": name}}],
        )
        for name in ("scaffold", "feddyn", "ifca")
    ),
    ("rule-exact", "aggregation.sum", [TEN, rule("krum"), EXACT]),
    ("noise-missing", "privacy.level", [private("example", noise_multiplier="off")]),
    ("epsilon-infinite", "privacy.target_epsilon", [private("example", noise_multiplier=0.0, target_epsilon=3.0)]),
    ("epsilon-infinite", "privacy.target_epsilon", [private("client", noise_multiplier=0.0, target_epsilon=8.0)]),
    ("delta-large", "privacy.delta", [private("client", delta=0.3)]),
    ("delta-large", "privacy.delta", [private("example", delta=1 / 60)]),
    ("client-level-weighting", "algorithm.weighting", [CLIENT, {"algorithm": {"weighting": "examples"}}]),
    ("example-level-local-steps", "client.local_steps", [EXAMPLE, {"client": {"local_steps": 5}}]),
    ("example-level-stragglers", "client.stragglers", [EXAMPLE, {"client": {"local_epochs": 3, "stragglers": 0.5}}]),
    (
        "example-level-adaptive-clip",
        "privacy.adaptive_clip.enabled",
        [EXAMPLE, {"privacy": {"adaptive_clip": {"enabled": True}}}],
    ),
    ("idle-noise-multiplier", "privacy.noise_multiplier", [private("none", noise_multiplier=1.0)]),
    ("idle-target-epsilon", "privacy.target_epsilon", [private("none", target_epsilon=8.0)]),
    ("idle-clip", "privacy.clip", [{"privacy": {"clip": 0.5}}]),
    ("idle-adaptive-clip", "privacy.adaptive_clip.enabled", [ADAPTIVE]),
    ("roster-idle", "privacy.secure_aggregation.roster", [secure(enabled=False, roster="r.toml", key="k")]),
    ("key-idle", "privacy.secure_aggregation.key", [secure(enabled=False, key="k")]),
    ("roster-alone", "privacy.secure_aggregation.roster", [secure(roster="r.toml")]),
    ("key-alone", "privacy.secure_aggregation.key", [secure(key="k")]),
    ("identity-unreadable", "privacy.secure_aggregation", [secure(roster="no.toml", key="no.key")]),
    ("min-clients-unreachable", "privacy.secure_aggregation.min_clients", [secure(), {"cohort": {"size": 2}}]),
    ("min-clients-unreachable", "privacy.secure_aggregation.min_clients", [secure(min_clients=4)]),  # one owns nothing
    ("ring-bound", "privacy.secure_aggregation.bound", [secure(bits=32, bound=1e9)]),
    (
        "ring-bound",
        "privacy.secure_aggregation.bound",
        [private("client", adaptive_clip={"enabled": True}, secure_aggregation={"bits": 32, "bound": 1e9})],
    ),
    ("ring-clip", "privacy.clip", [private("client", clip=1e9, secure_aggregation={"bits": 32})]),
    ("clip-above-bound", "privacy.clip", [private("client", clip=20.0, adaptive_clip={"enabled": True})]),
    (
        "clip-above-bound",
        "privacy.clip",
        [private("client", clip=8.01, adaptive_clip={"enabled": True}, secure_aggregation={"enabled": True})],
    ),
    (
        "clip-below-grid",
        "privacy.clip",
        [private("client", noise_multiplier=0.0, clip=1e-7, delta=0.1, adaptive_clip={"enabled": True})],
    ),
    ("noise-below-grid", "privacy.noise_multiplier", [private("client", noise_multiplier=1e-12)]),
    (
        "noise-below-grid",
        "privacy.noise_multiplier",
        [
            private(
                "client",
                noise_multiplier=1e-3,
                clip=1e-6,
                adaptive_clip={"enabled": True},
                secure_aggregation={"bits": 32, "bound": 0.9},
            )
        ],
    ),
    *(
        (code, "aggregation.compression.name", [{"aggregation": {"compression": {"name": name}}}, other])
        for name in ("int8", "random_k", "top_k", "power_sgd")
        for code, other in (("compression-masked", secure()), ("compression-client-level", CLIENT))
    ),
    ("work-epochs", "client.local_epochs", [{"client": {"local_epochs": 10_000, "batch_size": 0}}]),
    ("work-steps", "client.local_steps", [{"client": {"local_steps": 1_000_000, "batch_size": 0}}]),
    ("cohort-sampler", "cohort.sampler.name", [{"cohort": {"size": 4, "sampler": {"name": "size"}}}]),
]


@pytest.mark.parametrize(
    ("code", "key", "layers"), CONFIGURATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_configuration_that_cannot_run_is_refused(code, key, layers):
    sizes = torch.tensor([10, 7000, 0, 20]) if code in ("work-epochs", "work-steps") else None
    error = refused(*layers, sizes=sizes)
    assert (error.code, error.key) == (code, key)


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
        ("task-personal", PERSONAL),
        ("task-contrasts", {"algorithm": {"name": "moon"}}),
        ("task-example-level", EXAMPLE),
    ],
)
def test_a_task_without_classes_has_no_accuracy_features_or_gradients_per_example(code, layer):
    class Other(Task):
        classifies = False

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
    SEEN.add(code)


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


def test_codes_are_unique_and_keys_are_those_of_the_configuration():
    codes = [check.code for check in TABLE]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in codes)
    known = {key for key, _ in keys_of(Config)}
    sections = {key.rpartition(".")[0] for key in known} | {"client.schedule"}
    assert {key for check in TABLE for key in check.keys} <= known | sections | {"client.optimizer.name"}


def test_every_row_is_tested():
    """Runs last in this file. What needs divided data, a GPU or a missing package is tested elsewhere."""
    elsewhere = {"parts-args", "parts-placement", "accountant-missing", "backend-on-cpu"}
    gpu = {"device-without-gpu", "backend-without-gpu"} if torch.cuda.is_available() else set()
    assert {check.code for check in TABLE} - SEEN - elsewhere - gpu == set()
