"""evaluate.clients_mean: the mean of what all clients trained last, beside the server's model."""

import pytest
import torch

from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.sampling import SizeSampler
from tests.helpers.quadratics import POINTS, SIZES, UNIFORM, descended, mean, quadratics, start

ON = {"every": 1, "clients_mean": True}


def test_loss(w):
    return float((POINTS[:, :2] @ w - POINTS[:, 2]).square().mean() / 2)


test_loss.__test__ = False


def told(f):
    return [m["clients_mean_loss"] for m in f.telemetry.history]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_it_is_the_mean_of_all_clients_last_models(tmp_path, weighting):
    """Two of three take part; who did not yet counts with the first model."""
    table = {"weighting": weighting}
    f, server = quadratics(tmp_path, algorithm=table, cohort={"size": 2}, evaluate=ON, run={"rounds": 5})
    weights, w, last, expected = SIZES if weighting == "examples" else UNIFORM, start(), [start()] * 3, []
    for t in range(5):
        ids = f.sampler.cohort(t).ids
        for k in ids:
            last[k] = descended(k, w)
        w = mean([last[k] for k in ids], [weights[k] for k in ids])
        expected.append(test_loss(mean(last, weights)))
    assert (federate(f, server).w - w).abs().max() <= 1e-12  # the run itself is as without
    assert told(f) == pytest.approx(expected, rel=1e-7)
    assert [m["test_loss"] for m in f.telemetry.history] != pytest.approx(expected, abs=1e-3)
    assert f.telemetry.summary()["final_clients_mean_accuracy"] == f.telemetry.history[-1]["clients_mean_accuracy"]


def test_feddyns_is_plain(tmp_path):
    """In full participation theta_{t+1} + h / alpha, the mean before the correction."""
    table = {"name": "feddyn", "alpha": 0.5}
    f, server = quadratics(tmp_path, algorithm=table, evaluate=ON, run={"rounds": 4})
    after = federate(f, server)
    assert told(f)[-1] == pytest.approx(test_loss(after.w + after.extra["h"] / 0.5), rel=1e-7)
    assert abs(told(f)[-1] - test_loss(after.w)) > 1e-3


@pytest.mark.parametrize("name", ["scaffold", "fednova", "moon", "ditto", "apfl", "personal", "fedprox", "qffl"])
def test_other_algorithms_are_what_they_are_without(tmp_path, name):
    table = {"name": name} | ({"mu": 0.0} if name == "moon" else {})
    f, server = quadratics(tmp_path / "with", algorithm=table, evaluate=ON, run={"rounds": 3})
    plain, begun = quadratics(tmp_path / "without", algorithm=table, run={"rounds": 3})
    assert torch.equal(federate(f, server).w, federate(plain, begun).w)
    assert len(told(f)) == 3
    assert "clients_mean_loss" not in plain.telemetry.history[-1]


def test_clients_drawn_by_size_count_by_their_examples(tmp_path):
    cohort = {"size": 1, "sampler": {"name": "size"}}
    f, server = quadratics(tmp_path, cohort=cohort, evaluate=ON, run={"rounds": 1})
    (k,) = SizeSampler(torch.tensor(SIZES), 1, 0).cohort(0).ids
    federate(f, server)
    last = [descended(k, start()) if i == k else start() for i in range(3)]
    assert told(f) == pytest.approx([test_loss(mean(last, SIZES))], rel=1e-7)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"privacy": {"level": "client", "noise_multiplier": 1.0}}, "clients_mean=true.*privacy.level=client"),
        ({"privacy": {"level": "example", "noise_multiplier": 1.0}}, "clients_mean=true.*privacy.level=example"),
        ({"privacy": {"secure_aggregation": {"enabled": True}}}, "clients_mean=true.*secure_aggregation"),
        ({"algorithm": {"name": "ifca"}}, "clients_mean=true.*clusters"),
        ({"algorithm": {"name": "fedbn", "inner": {"name": "ifca"}}}, "clients_mean=true.*clusters"),
        ({"evaluate": {"clients_mean": "cohort"}}, "evaluate.clients_mean='cohort'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, sections, words):
    with pytest.raises(UsageError, match=words):
        quadratics(tmp_path, **{"evaluate": ON, **sections})
