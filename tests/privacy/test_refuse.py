"""Settings that would carry a figure without a guarantee are refused; each with a key, a reason and a remedy."""

import pytest
from torch import nn

from fedddp.privacy.refuse import mixing_layers, refusals

FINE = {"noise_multiplier": 1.0, "target_epsilon": None, "delta": 1e-5, "units": 60_000}


@pytest.mark.parametrize("level", ["example", "client"])
def test_what_has_a_guarantee_is_not_refused(level):
    assert refusals(level, **FINE, weighting="uniform") == []
    assert refusals(level, **{**FINE, "noise_multiplier": None, "target_epsilon": 8.0}) == []
    assert refusals(level, **{**FINE, "noise_multiplier": 0.0}) == []  # clipping alone, with an infinite epsilon


def test_levels_refuse_only_what_breaks_their_own_guarantee():
    assert refusals("example", **FINE, weighting="examples") == []
    assert (
        refusals("client", **FINE, weighting="uniform", mixing=["1 (BatchNorm2d)"], adaptive_clip=True, shared=True)
        == []
    )


@pytest.mark.parametrize(
    ("level", "changed", "key", "remedy"),
    [
        ("example", {"noise_multiplier": None}, "privacy.level=example", "give one"),
        ("client", {"noise_multiplier": 0, "target_epsilon": 8.0}, "privacy.target_epsilon=8", "leave out the noise"),
        ("client", {"units": 100_000}, "privacy.delta=1e-05", "less than 1/100000 = 1e-05"),
        ("client", {"weighting": "examples"}, "algorithm.weighting=examples", "use uniform"),
        ("example", {"mixing": ["1 (BatchNorm2d)"]}, "model.name: 1 (BatchNorm2d)", "use GroupNorm"),
        ("example", {"shared": True}, "data.partition.num_clients", "use fewer clients"),
        ("example", {"adaptive_clip": True}, "privacy.adaptive_clip.enabled=true", "use privacy.level=client"),
        ("none", {}, "privacy.noise_multiplier=1.0", "use privacy.level=example"),
        ("none", {"noise_multiplier": None, "target_epsilon": 8.0}, "privacy.target_epsilon=8.0", "use privacy.level"),
        ("none", {"noise_multiplier": None, "clip": 0.5}, "privacy.clip=0.5", "use privacy.level=example or client"),
        ("none", {"noise_multiplier": None, "adaptive_clip": True}, "privacy.adaptive_clip.enabled=true", "use"),
    ],
)
def test_one_line_names_the_key_the_reason_and_the_remedy(level, changed, key, remedy):
    (reason,) = refusals(level, **{**FINE, **changed})
    assert reason.startswith(key)
    assert remedy in reason.split("; ", 1)[1]
    assert "\n" not in reason


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
