"""Who takes part: by size, by power of choice, without stragglers; against plain loops on quadratics."""

import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import Work
from fedddp.federation import federate
from fedddp.sampling import PowerOfChoiceSampler, SizeSampler
from tests.helpers.quadratics import SIZES, UNIFORM, descended, loss, mean, quadratics, start
from tests.helpers.support import client_states

POWER = {"cohort": {"size": 1, "sampler": {"name": "power_of_choice", "candidates": 2}}}
BY_SIZE = {"cohort": {"size": 1, "sampler": {"name": "size"}}}
DP = {"noise_multiplier": 1.0}


def test_power_of_choice_is_the_loop(tmp_path):
    """Of two candidates the one with the higher loss at the round's model; the plain mean of those chosen."""
    f, server = quadratics(tmp_path, run={"rounds": 8}, **POWER)
    candidates = PowerOfChoiceSampler(torch.tensor(SIZES), 1, 2, 0, lambda c, w: w)
    w, picked = start(), []
    for t in range(8):
        ids = candidates.cohort(t).ids
        picked.append(max(ids, key=lambda k, w=w: loss(k, w)))
        w = descended(picked[-1], w)
    assert (federate(f, server).w - w).abs().max() <= 1e-12
    assert picked != [candidates.cohort(t).ids[0] for t in range(8)]
    assert f.algorithm.weighting == "uniform"


@pytest.mark.parametrize("size", [2, 3])
def test_several_that_are_chosen_weigh_alike(tmp_path, size):
    cohort = {"size": size, "sampler": {"name": "power_of_choice"}}
    f, server = quadratics(tmp_path, run={"rounds": 1}, cohort=cohort)
    best = sorted(range(3), key=lambda k: -loss(k, start()))[:size]
    expected = mean([descended(k, start()) for k in best], UNIFORM[:size])
    assert (federate(f, server).w - expected).abs().max() <= 1e-12


def test_by_size_means_are_plain(tmp_path):
    f, server = quadratics(tmp_path, run={"rounds": 6}, **BY_SIZE)
    w = start()
    for t in range(6):
        (k,) = SizeSampler(torch.tensor(SIZES), 1, 0).cohort(t).ids
        w = descended(k, w)
    assert (federate(f, server).w - w).abs().max() <= 1e-12


@pytest.mark.parametrize("inner", [None, {"name": "fedprox", "mu": 0.1}])
def test_auto_means_plain_inside_a_wrapper_too(tmp_path, inner):
    table = {"name": "personal", "inner": inner} if inner else {"name": "ditto"}
    f, _ = quadratics(tmp_path, algorithm=table, **BY_SIZE)
    assert (f.algorithm.inner if inner else f.algorithm).weighting == "uniform"


def test_stragglers_are_dropped_rather_than_averaged(tmp_path):
    """The same clients straggle as without; the others do all of their work, and are averaged by their examples."""
    client = {"local_epochs": 5, "stragglers": 0.5}
    f, server = quadratics(tmp_path, run={"rounds": 6}, client={**client, "drop_stragglers": True})
    kept, _ = quadratics(tmp_path / "kept", client=client)
    w, late = start(), 0
    for t in range(6):
        steps = [int(kept.trainer.plan(kept.trainer.on((k,), t)).steps[0]) for k in range(3)]
        on_time = [k for k in range(3) if not Work(stragglers=0.5).late(k, t, 0)]
        assert all(steps[k] == 5 for k in on_time)
        late += 3 - len(on_time)
        if on_time:
            w = mean([descended(k, w) for k in on_time], [SIZES[k] for k in on_time])
    assert 0 < late < 18
    assert (federate(f, server).w - w).abs().max() <= 1e-12


def test_a_round_of_stragglers_only_changes_nothing(tmp_path):
    client = {"local_epochs": 1, "stragglers": 1.0, "drop_stragglers": True}
    f, server = quadratics(tmp_path, run={"rounds": 2}, client=client)
    after = federate(f, server)
    assert torch.equal(after.w, server.w)
    assert after.round == 2
    assert [m["participants"] for m in f.telemetry.history] == [0, 0]


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
@pytest.mark.parametrize("cohort", [POWER["cohort"], BY_SIZE["cohort"]], ids=["power", "size"])
def test_the_servers_vector_stays_the_mean_of_all_clients(tmp_path, name, cohort):
    f, server = quadratics(tmp_path, algorithm={"name": name}, run={"rounds": 5}, cohort=cohort)
    after = federate(f, server)
    theirs = client_states(f, (0, 1, 2), server)[{"scaffold": "control", "feddyn": "gradient"}[name]]
    mine = after.extra[{"scaffold": "control", "feddyn": "h"}[name]]
    assert (mine - theirs.mean(dim=0)).abs().max() <= 1e-11


def test_a_resumed_run_chooses_alike(tmp_path):
    f, server = quadratics(tmp_path, run={"rounds": 6}, **POWER)
    again, begun = quadratics(tmp_path / "again", run={"rounds": 6}, **POWER)
    half = federate(again.until(3), begun)
    assert torch.equal(federate(again, half).w, federate(f, server).w)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({**POWER, "privacy": {"level": "client", **DP}}, "power_of_choice.*privacy.level=client.*uniform"),
        ({**POWER, "privacy": {"level": "example", **DP}}, "power_of_choice.*privacy.level=example.*uniform"),
        ({**BY_SIZE, "privacy": {"level": "client", **DP}}, "'size'.*privacy.level=client.*uniform"),
        ({**BY_SIZE, "privacy": {"level": "example", **DP}}, "'size'.*privacy.level=example.*uniform"),
        (
            {**POWER, "privacy": {"secure_aggregation": {"enabled": True}}},
            "power_of_choice.*secure aggregation.*uniform",
        ),
        ({**POWER, "algorithm": {"name": "ifca"}}, "power_of_choice.*2 clusters"),
        ({**POWER, "algorithm": {"name": "fedper", "inner": {"name": "ifca"}}}, "power_of_choice.*2 clusters"),
        ({**BY_SIZE, "algorithm": {"weighting": "examples"}}, "algorithm.weighting='examples'.*weighting=uniform"),
        (
            {**BY_SIZE, "algorithm": {"name": "personal", "inner": {"weighting": "examples"}}},
            "^algorithm.weighting",
        ),
        ({"cohort": {"sampler": {"name": "size"}}}, "'size': .*client 1 has 4 of all 7 .*cohort.size to 1"),
        ({"cohort": {"size": 2, "sampler": {"name": "size"}}}, "'size': .*client 1 has 4 of all 7"),
        ({"cohort": {"size": 2, "sampler": {"name": "power_of_choice", "candidates": 1}}}, "candidates=1"),
        ({"cohort": {"size": 2, "sampler": {"name": "power_of_choice", "candidates": 4}}}, "candidates=4"),
        ({"cohort": {"sampler": {"name": "power-of-choice"}}}, "did you mean 'power_of_choice'"),
        ({"cohort": {"sampler": {"name": "uniform", "candidates": 4}}}, "cohort.sampler.candidates: unknown key"),
        ({"client": {"drop_stragglers": True}}, "drop_stragglers=true: there are no stragglers"),
        (
            {
                "client": {"drop_stragglers": True, "stragglers": 0.5},
                "privacy": {"level": "client", **DP},
            },
            "client.drop_stragglers=true: privacy.level=client",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, sections, words):
    with pytest.raises(UsageError, match=words):
        quadratics(tmp_path, **sections)
