"""What the privacy section promises is checked, and its noise filled in, before anything starts."""

import pytest
import torch
from torch import nn

from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.flat import FlatSpec
from fedddp.secure import Identity, Roster
from fedddp.setup.checks import caveat, check_compression, example_level_work, heaviest, secured, told
from fedddp.setup.resolve import resolve

SIZES = torch.tensor([10, 30, 0, 20])
PLACE = Place(world_size=4, local_world_size=4)


def made(**privacy):
    return resolve(build({"privacy": privacy, "client": {"batch_size": 5}, "run": {"rounds": 3}}), PLACE)


def checked(module=None, place=PLACE, **privacy):
    return secured(made(**privacy), place, SIZES, module or nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"noise_multiplier": 1.0}, ["privacy.noise_multiplier=1", "privacy.level=none"]),
        ({"level": "example"}, ["privacy.level=example", "noise_multiplier", "target_epsilon"]),
        ({"level": "client", "noise_multiplier": 1.0, "delta": 0.3}, ["privacy.delta=0.3", "1/4"]),
        ({"level": "example", "noise_multiplier": 0.0, "target_epsilon": 3.0}, ["privacy.target_epsilon=3"]),
        ({"secure_aggregation": {"enabled": True, "roster": "r.toml"}}, ["roster='r.toml': needs key too", "keygen"]),
        ({"secure_aggregation": {"enabled": True, "roster": "no.toml", "key": "no.key"}}, ["no.toml"]),
        ({"secure_aggregation": {"enabled": True, "bits": 32, "bound": 1e9}}, ["bound=1e+09", "32 bits"]),
        ({"secure_aggregation": {"roster": "r.toml", "key": "k"}}, ["roster='r.toml'", "unmasked", "enabled=true"]),
        ({"secure_aggregation": {"key": "k"}}, ["key='k'", "unmasked", "enabled=true"]),
        ({"level": "client", "noise_multiplier": 1e-12}, ["noise_multiplier=1e-12", "a rank's share"]),
        (
            {"level": "client", "noise_multiplier": 1.0, "clip": 20.0, "adaptive_clip": {"enabled": True}},
            ["privacy.clip=20", "8 at most", "privacy.secure_aggregation.bound", "raise the bound to 20"],
        ),
        (
            {
                "level": "client",
                "noise_multiplier": 1.0,
                "clip": 8.01,
                "adaptive_clip": {"enabled": True},
                "secure_aggregation": {"enabled": True},
            },
            ["privacy.clip=8.01", "8 at most"],
        ),
        (
            {
                "level": "client",
                "noise_multiplier": 0.0,
                "clip": 1e-7,
                "delta": 0.1,
                "adaptive_clip": {"enabled": True},
            },
            ["privacy.clip=1e-07", "7.62939e-06 at least"],
        ),
        (
            {
                "level": "client",
                "noise_multiplier": 1e-3,
                "clip": 1e-6,
                "adaptive_clip": {"enabled": True},
                "secure_aggregation": {"bits": 32, "bound": 0.9},
            },
            ["noise_multiplier=0.001", "a rank's share"],
        ),
        (
            {"level": "client", "noise_multiplier": 1.0, "clip": 1e9, "secure_aggregation": {"bits": 32}},
            ["privacy.clip=1e+09", "32 bits"],
        ),
        (
            {
                "level": "client",
                "noise_multiplier": 1.0,
                "adaptive_clip": {"enabled": True},
                "secure_aggregation": {"bits": 32, "bound": 1e9},
            },
            ["privacy.secure_aggregation.bound=1e+09", "32 bits"],
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(privacy, words):
    with pytest.raises(UsageError) as error:
        checked(**privacy)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_batchnorm_is_refused_under_dp_sgd_only():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(UsageError, match=r"BatchNorm1d.*GroupNorm"):
        checked(module, level="example", noise_multiplier=1.0)
    checked(module, level="client", noise_multiplier=1.0)


def test_examples_as_weights_are_refused_where_a_client_is_hidden():
    config = resolve(
        build({"privacy": {"level": "client", "noise_multiplier": 1.0}, "algorithm": {"weighting": "examples"}}), PLACE
    )
    with pytest.raises(UsageError, match=r"algorithm.weighting=examples"):
        secured(config, PLACE, SIZES, nn.Linear(2, 2))


def test_two_ranks_cannot_hide_from_each_other():
    with pytest.raises(UsageError, match="needs 3 ranks or more, not 2"):
        checked(place=Place(world_size=2, local_world_size=2), secure_aggregation={"enabled": True})


def test_a_key_that_others_can_read_is_refused(tmp_path):
    identity = Identity.new()
    identity.save(tmp_path / "rank.key")
    (tmp_path / "rank.key").chmod(0o644)
    (tmp_path / "roster.toml").write_text("")
    with pytest.raises(UsageError, match=r"privacy\.secure_aggregation"):
        checked(
            secure_aggregation={
                "enabled": True,
                "roster": str(tmp_path / "roster.toml"),
                "key": str(tmp_path / "rank.key"),
            }
        )


@pytest.mark.parametrize("name", ["int8", "random_k", "top_k", "power_sgd"])
def test_compression_is_refused_by_reason(name):
    compression = {"aggregation": {"compression": {"name": name}}}
    module = nn.Linear(40, 40)

    def check(privacy, module=module):
        check_compression(resolve(build(compression, {"privacy": privacy}), PLACE), FlatSpec.of(module))

    check({})
    check({"level": "example", "noise_multiplier": 1.0})
    with pytest.raises(UsageError, match=rf"name={name}: masks.*privacy.secure_aggregation.enabled=true.*use"):
        check({"secure_aggregation": {"enabled": True}})
    with pytest.raises(UsageError, match=rf"name={name}: masks.*privacy.level=client"):
        check({"level": "client", "noise_multiplier": 1.0})


def test_a_model_without_a_matrix_worth_factors_is_refused():
    config = resolve(build({"aggregation": {"compression": {"name": "power_sgd", "rank": 4}}}), PLACE)
    check_compression(config, FlatSpec.of(nn.Linear(40, 5)))
    with pytest.raises(UsageError, match=r"power_sgd: would make nothing.*smaller rank"):
        check_compression(config, FlatSpec.of(nn.Linear(40, 4)))


def test_what_is_asked_for_stays_as_it_is():
    config = made()
    assert secured(config, PLACE, SIZES, nn.Linear(2, 2)) is config
    assert checked(level="client", noise_multiplier=1.5).privacy.noise_multiplier == 1.5


def test_the_heaviest_cohort_is_that_of_the_largest_clients():
    assert heaviest(SIZES, 2) == 50
    assert heaviest(SIZES, 9) == 61  # the client without examples weighs no more than 1


def test_example_level_work_is_a_rate_and_a_number_of_steps_for_each_client():
    rate, steps = example_level_work(made(), SIZES)
    assert rate.tolist() == [0.5, 1 / 6, 1.0, 0.25]
    assert steps.tolist() == [2, 6, 0, 4]


def test_a_run_says_what_it_is_and_a_seeded_one_that_it_guarantees_nothing():
    lines = told(
        checked(level="client", noise_multiplier=1.0, randomness="seeded", secure_aggregation={"enabled": True})
    )
    assert lines[0].startswith("simulation: every rank can read all of mnist-mini")
    assert "nobody is authenticated" in lines[1]
    assert "client level" in lines[2]
    assert "guarantees nothing" in lines[2]
    assert len(lines) == 3
    assert "share of the noise only" in told(checked(level="client", noise_multiplier=1.0))[-1]
    assert caveat(made()) == ""


def test_a_key_of_another_rank_and_a_roster_of_other_ranks_are_refused_before_anything_starts(tmp_path):
    identities = {rank: Identity.new() for rank in range(4)}
    for rank, identity in identities.items():
        identity.save(tmp_path / f"rank-{rank}.key")
    (tmp_path / "roster.toml").write_text(Roster({rank: i.public for rank, i in identities.items()}).text())

    def keys(key):
        return {"enabled": True, "roster": str(tmp_path / "roster.toml"), "key": str(tmp_path / key)}

    second = Place(rank=1, world_size=4, local_world_size=4)
    checked(place=second, secure_aggregation=keys("rank-{rank}.key"))
    with pytest.raises(UsageError, match="is not the key that the roster names for rank 1"):
        checked(place=second, secure_aggregation=keys("rank-0.key"))
    with pytest.raises(UsageError, match="names 4 parties, but 3 ranks run"):
        checked(place=Place(world_size=3, local_world_size=3), secure_aggregation=keys("rank-{rank}.key"))
