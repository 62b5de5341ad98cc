"""Membership scores and AUC intervals against figures worked out by hand."""

from math import erf, log, pi, sqrt

import pytest
import torch

from examples.privacy.attacks.membership import auc, lira, loss_threshold, phi, pooled_auc


def gaussian(n, mean, seed):
    return mean + torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_phi_is_the_logit_of_the_right_labels_probability():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    y = torch.tensor([1, 2])
    p = logits.double().softmax(dim=1)[torch.arange(2), y]
    assert torch.allclose(phi(logits, y), (p / (1 - p)).log())
    assert torch.allclose(loss_threshold(phi(logits, y)), p.log())
    assert phi(torch.tensor([[100.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(100.0)
    assert phi(torch.stack([logits, 2 * logits]), y).shape == (2, 2)


def test_auc_and_its_interval_by_hand():
    """DeLong: V = (1, 1/2, 1), U = (2/3, 1), variance (1/12) / 3 + (1/18) / 2 = 1/18."""
    found = auc(torch.tensor([3.0, 1.0, 4.0]), torch.tensor([2.0, 0.0]))
    assert found.value == pytest.approx(5 / 6)
    assert found.low == pytest.approx(5 / 6 - 1.959964 * sqrt(1 / 18), abs=1e-6)
    assert found.high == 1.0


def test_ties_count_one_half():
    assert auc(torch.zeros(3), torch.zeros(4)).value == 0.5
    assert auc(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])).value == 0.5
    with pytest.raises(ValueError, match="at least two"):
        auc(torch.zeros(1), torch.zeros(4))


def test_the_interval_covers_the_truth_about_19_times_of_20():
    """Two Gaussians one standard deviation apart: AUC = Phi(1 / sqrt 2)."""
    truth = (1 + erf(1 / 2)) / 2
    inside = 0
    for seed in range(200):
        found = auc(gaussian(80, 1.0, 2 * seed), gaussian(120, 0.0, 2 * seed + 1))
        inside += found.low <= truth <= found.high
    assert 180 <= inside <= 198


def test_members_found_at_one_per_cent_false_alarms():
    others = torch.arange(100.0)
    assert auc(torch.tensor([97.5, 120.0, 130.0, 0.0]), others).found_at_1_percent == 0.5


def test_pooled_over_one_model_is_the_plain_auc():
    scores = torch.cat([gaussian(600, 1.0, 0), gaussian(600, 0.0, 1)])
    members = torch.arange(1200) < 600
    plain, pooled = auc(scores[members], scores[~members]), pooled_auc(scores[None], members[None])
    assert pooled.value == pytest.approx(plain.value, abs=1e-12)
    assert pooled.low == pytest.approx(plain.low, abs=0.006)
    assert pooled.high == pytest.approx(plain.high, abs=0.006)
    tied = pooled_auc(torch.zeros(1, 8), (torch.arange(8) < 4)[None])
    assert (tied.value, tied.low, tied.high) == (0.5, 0.5, 0.5)


def test_scores_of_one_example_are_drawn_together():
    """The same model four times tells no more than once: the interval must not shrink."""
    scores = torch.cat([gaussian(200, 0.5, 0), gaussian(200, 0.0, 1)])[None]
    members = (torch.arange(400) < 200)[None]
    once, often = pooled_auc(scores, members), pooled_auc(scores.expand(4, -1), members.expand(4, -1))
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-6)


SHADOWS = torch.tensor([[5.0, 1.0], [3.0, 0.0], [1.0, 4.0], [-1.0, 2.0]], dtype=torch.float64)
MEMBERS = torch.tensor([[True, False], [True, False], [False, True], [False, True]])


def test_lira_by_hand():
    """Means in 4 and 3, out 0 and 0.5; pooled variances in (2 + 2) / 2, out (2 + 0.5) / 2."""
    target = torch.tensor([3.0, 3.0], dtype=torch.float64)

    def log_density(x, mean, variance):
        return -((x - mean) ** 2) / (2 * variance) - log(2 * pi * variance) / 2

    online = [log_density(3, 4, 2) - log_density(3, 0, 1.25), log_density(3, 3, 2) - log_density(3, 0.5, 1.25)]
    assert lira(target, SHADOWS, MEMBERS).tolist() == pytest.approx(online)
    offline = [log((1 + erf((3 - mean) / sqrt(2 * 1.25))) / 2) for mean in (0, 0.5)]
    assert lira(target, SHADOWS, MEMBERS, online=False).tolist() == pytest.approx(offline)


def test_lira_needs_shadow_models_of_both_kinds():
    target = torch.zeros(2, dtype=torch.float64)
    never = MEMBERS.clone()
    never[:, 0] = False
    with pytest.raises(ValueError, match="1 examples have no shadow model trained with"):
        lira(target, SHADOWS, never)
    assert lira(target, SHADOWS, never, online=False).isfinite().all()
    with pytest.raises(ValueError, match="no variance"):
        lira(target, SHADOWS[1:3], MEMBERS[1:3])
