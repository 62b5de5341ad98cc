"""fedddp.setup.checks: every row of the table refuses what it is there for, by its key and code, and nothing else."""

import re
from pathlib import Path

import pytest
import torch

from fedddp.config import Config
from fedddp.registry.choice import keys_of
from fedddp.setup.checks import TABLE
from tests.helpers.checks import (
    ADAPTIVE,
    CLIENT,
    EXAMPLE,
    INT8,
    PERSONAL,
    TEN,
    attack,
    checked_run,
    private,
    refused,
    rule,
    secure,
)

HALF = {"cohort": {"size": 2}}
POWER = {"cohort": {"size": 2, "sampler": {"name": "power_of_choice"}}}
IFCA = {"algorithm": {"name": "ifca", "clusters": 2}}
EQUAL, ONE = private("client", equal_work=True), {"client": {"execution": {"width": 1}}}
ACCOUNT = {"privacy": {"account": {"dir": "account", "key": "keys/{rank}.key"}}}
MEAN = {"evaluate": {"clients_mean": True}}
ADAM = {"client": {"optimizer": {"name": "adam"}}}
BY_STEP = {"client": {"local_steps": 3, "schedule": {"unit": "steps", "warmup": 5}}}
KEPT = {"client": {"optimizer_state": "keep"}}
MOMENTUM = {"client": {"optimizer": {"momentum": 0.9}}}
EXACT = {"aggregation": {"sum": "exact"}}

CONFIGURATIONS = [
    ("cohort-size", "cohort.size", [{"cohort": {"size": 5}}]),
    ("target-twice", "evaluate.target", [{"evaluate": {"target": "f1>=0.5", "target_accuracy": 0.9}}]),
    ("over-selection", "cohort.over_selection", [{"cohort": {"over_selection": 0.3}}]),
    (
        "deadline-private",
        "cohort.deadline",
        [{"cohort": {"deadline": 5.0}, "privacy": {"level": "client", "noise_multiplier": 1.0}}],
    ),
    ("cohort-twice", "cohort.size", [{"cohort": {"size": 3, "fraction": 0.5}}]),
    ("work-twice", "client.local_steps", [{"client": {"local_steps": 5, "local_epochs": 2}}]),
    ("order-epochs", "client.order", [{"client": {"order": "continue"}}]),
    ("schedule-unit", "client.schedule.unit", [{"client": {"schedule": {"unit": "steps"}}}]),
    ("schedule-unit-steps", "client.schedule.unit", [BY_STEP, {"algorithm": {"name": "scaffold"}}]),
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
    ("equal-work-level", "privacy.equal_work", [private("example", equal_work=True), ONE]),
    ("equal-work-shared", "privacy.equal_work", [EQUAL, ONE, TEN]),
    (
        "equal-work-stragglers",
        "privacy.equal_work",
        [EQUAL, ONE, {"client": {"local_epochs": 2, "stragglers": 0.5}}],
    ),
    ("equal-work-width", "privacy.equal_work", [EQUAL]),
    ("equal-work-sizes", "privacy.equal_work", [EQUAL, ONE]),
    ("mechanism-level", "privacy.mechanism", [private("example", mechanism="tree")]),
    ("mechanism-level", "privacy.mechanism", [{"privacy": {"mechanism": "banded_mf"}}]),
    (
        "mechanism-adaptive-clip",
        "privacy.adaptive_clip.enabled",
        [HALF, private("client", mechanism="tree", adaptive_clip={"enabled": True})],
    ),
    ("mechanism-equal-work", "privacy.equal_work", [HALF, private("client", mechanism="tree", equal_work=True), ONE]),
    ("mechanism-cohort", "privacy.mechanism", [private("client", mechanism="tree"), {"cohort": {"size": 3}}]),
    ("mechanism-cohort", "privacy.mechanism", [private("client", mechanism="banded_mf")]),
    ("sampler-private", "cohort.sampler.name", [private("client", mechanism="tree"), POWER]),
    ("bands-idle", "privacy.bands", [HALF, private("client", mechanism="tree", bands=2)]),
    ("bands-idle", "privacy.bands", [HALF, private("client", bands=1)]),
    ("bands-many", "privacy.bands", [HALF, private("client", mechanism="banded_mf", bands=3)]),
    ("personal-holdout", "evaluate.personal_every", [{"evaluate": {"personal_every": 3}}]),
    ("personal-private", "evaluate.personal_every", [secure(), PERSONAL]),
    ("personal-private", "evaluate.personal_every", [EXAMPLE, PERSONAL]),
    ("clients-mean-private", "evaluate.clients_mean", [secure(), MEAN]),
    ("clients-mean-private", "evaluate.clients_mean", [CLIENT, MEAN]),
    ("clients-mean-clusters", "evaluate.clients_mean", [IFCA, MEAN]),
    ("exact-width", "client.execution.width", [EXACT, {"client": {"execution": {"width": 4}}}]),
    (
        "rule-fragments",
        "aggregation.rule.name",
        [rule("centered_clipping"), {"algorithm": {"name": "streaming_diloco"}}],
    ),
    ("optimizer-state-idle", "client.optimizer_state", [KEPT]),
    ("optimizer-state-trainings", "client.optimizer_state", [KEPT, ADAM, {"algorithm": {"name": "ditto"}}]),
    ("optimizer-state-trainings", "client.optimizer_state", [KEPT, ADAM, {"algorithm": {"name": "moon"}}]),
    ("optimizer-state-restarts", "client.optimizer_state", [KEPT, ADAM, {"algorithm": {"name": "flora"}}]),
    ("optimizer-state-steps", "client.optimizer_state", [KEPT, MOMENTUM, {"algorithm": {"name": "scaffold"}}]),
    ("optimizer-state-steps", "client.optimizer_state", [KEPT, MOMENTUM, {"algorithm": {"name": "fednova"}}]),
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
    ("account-idle", "privacy.account.dir", [{"privacy": {"account": {"dir": "a", "key": "k"}}}]),
    ("account-seeded", "privacy.account.dir", [CLIENT, ACCOUNT, {"privacy": {"randomness": "seeded"}}]),
    ("account-key-missing", "privacy.account.key", [EXAMPLE, ACCOUNT, {"privacy": {"account": {"key": ""}}}]),
    ("account-dir-missing", "privacy.account.dir", [CLIENT, {"privacy": {"account": {"epsilon": 3.0}}}]),
    ("account-dir-missing", "privacy.account.dir", [CLIENT, {"privacy": {"account": {"delta": 1e-6}}}]),
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
    ("sizes", "client", "algorithm", "runs"),
    [
        ([10, 10, 10, 10], {"local_epochs": 2}, "fedavg", True),
        ([10, 30, 7, 20], {"local_epochs": 2}, "fedavg", False),
        ([10, 30, 7, 20], {"local_steps": 4}, "fedavg", True),
        ([10, 30, 4, 20], {"local_steps": 4}, "fedavg", False),  # batches of 4, not of 5
        ([10, 30, 7, 20], {"local_steps": 4}, "ditto", False),  # epochs for the personal model
        ([10, 10, 10, 10], {"local_epochs": 2}, "ditto", True),
    ],
)
def test_equal_work_needs_clients_of_equal_work(sizes, client, algorithm, runs):
    layers = EQUAL, ONE, {"client": client, "algorithm": {"name": algorithm}, "checkpoint": {"clients_dir": "own"}}
    if runs:
        checked_run(*layers, sizes=torch.tensor(sizes))
    else:
        assert refused(*layers, sizes=torch.tensor(sizes)).code == "equal-work-sizes"


def test_codes_are_unique_and_keys_are_those_of_the_configuration():
    codes = [check.code for check in TABLE]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in codes)
    known = {key for key, _ in keys_of(Config)}
    sections = {key.rpartition(".")[0] for key in known} | {"client.schedule"}
    assert {key for check in TABLE for key in check.keys} <= known | sections | {"client.optimizer.name"}


def test_every_row_is_tested():
    """Every code is written in a test, alone between quotes, as the code that is expected there."""
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [check.code for check in TABLE if f'"{check.code}"' not in written] == []
