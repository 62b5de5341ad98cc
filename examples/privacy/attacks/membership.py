"""Membership inference: was this example among those that the model was trained on?

Every attack gives an example a score, higher = "member", and is judged over all thresholds at once by the AUC: the
chance that a member scores higher than a non-member, 0.5 = guessing.

    loss threshold     score(x, y) = -loss(x, y)                                              Yeom et al. 2018
    LiRA, online       score = log N(phi; m_in, s_in) / N(phi; m_out, s_out)                   Carlini et al. 2022,
    LiRA, offline      score = log Pr[N(m_out, s_out) <= phi]                                  Algorithm 1 and section V

phi = log(p / (1 - p)), p the probability of the right label, is close to Gaussian over models trained with (in) and
without (out) the example; means and variances come from shadow models that the attacker trains on data of his own. With
few shadow models the variances are pooled over examples (section VI-C). An attack that fails here is no proof of
privacy: AUC is an average, a few examples may be exposed while it is near 0.5. Differential privacy bounds all attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from fedddp.rng import generator


@dataclass(frozen=True)
class AUC:
    """Area under the ROC curve with its 95% interval, and the rate of members found at 1% false alarms."""

    value: float
    low: float
    high: float
    found_at_1_percent: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def phi(logits: Tensor, y: Tensor) -> Tensor:
    """The confidence log(p_y / (1 - p_y)) of ``logits [..., n, C]`` for labels ``y [n]``, [..., n].

    As z_y - logsumexp of the other classes' z: p itself would round to 1.
    """
    z = logits.double()
    right = torch.nn.functional.one_hot(y, z.shape[-1]).bool().expand(z.shape)
    return z[right].view(z.shape[:-1]) - z.masked_fill(right, -torch.inf).logsumexp(dim=-1)


def loss_threshold(confidence: Tensor) -> Tensor:
    """Yeom's score, -loss = log p_y, from ``confidence`` (see `phi`), same shape."""
    return torch.nn.functional.logsigmoid(confidence)


def lira(target: Tensor, shadows: Tensor, members: Tensor, *, online: bool = True) -> Tensor:
    """Likelihood-ratio scores [n] of n examples.

    ``target [n]``: the attacked model's `phi`; ``shadows [S, n]``: that of S shadow models; ``members [S, n]`` bool:
    which example each of them was trained on. Raises ValueError if an example lacks a shadow model without it, or,
    online, one with it.
    """
    kinds = {"without": ~members, "with": members} if online else {"without": ~members}
    fitted = {}
    for kind, which in kinds.items():
        count = which.sum(dim=0)
        if not count.all():
            raise ValueError(f"{int((count == 0).sum())} examples have no shadow model trained {kind} them")
        mean = (shadows * which).sum(dim=0) / count
        freedom = (count - 1).sum()  # pooled over examples: one standard deviation for all
        if not freedom:
            raise ValueError(f"no example has two shadow models trained {kind} it, so there is no variance")
        variance = ((shadows - mean).square() * which).sum() / freedom
        fitted[kind] = torch.distributions.Normal(mean, variance.sqrt().clamp(min=1e-12))
    if online:
        return fitted["with"].log_prob(target) - fitted["without"].log_prob(target)
    return torch.special.log_ndtr((target - fitted["without"].mean) / fitted["without"].stddev)


def auc(members: Tensor, others: Tensor) -> AUC:
    """AUC of scores ``members [a]`` against ``others [b]``, ties counting one half, with DeLong's 95% interval.

    DeLong et al. 1988: with V_i the fraction of others below member i and U_j that of members above other j, the
    variance is var(V) / a + var(U) / b. For independent examples and one attacked model. Raises ValueError for
    fewer than two scores a side.
    """
    if min(len(members), len(others)) < 2:
        raise ValueError("an interval needs at least two members and two others")
    v, u = _below(members, others), 1 - _below(others, members)
    value = float(v.mean())
    half = 1.959964 * sqrt(float(v.var()) / len(v) + float(u.var()) / len(u))
    return AUC(value, max(0.0, value - half), min(1.0, value + half), _found(members, others))


def pooled_auc(scores: Tensor, members: Tensor, *, seed: int = 0, resamples: int = 1000) -> AUC:
    """The same over T attacked models: ``scores [T, n]`` of n examples, ``members [T, n]`` bool.

    One threshold for all models. An example has T scores that belong together: the interval is the 95% percentile
    bootstrap over examples, drawn with all their scores. It does not cover another draw of the T models.
    """
    flat, is_member = scores.flatten().double(), members.flatten()
    order = flat.argsort()
    levels, level = torch.unique_consecutive(flat[order], return_inverse=True)
    example = torch.arange(scores.shape[1]).repeat(len(scores))[order]
    is_member = is_member[order]
    stream, values = generator(seed, "bootstrap"), []
    for draw in range(resamples + 1):
        n = scores.shape[1]
        weight = torch.ones(n) if not draw else torch.randint(n, (n,), generator=stream).bincount(minlength=n)
        each = weight[example].double()
        inside = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level, each * is_member)
        outside = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level, each * ~is_member)
        below = outside.cumsum(0) - outside / 2  # ties count one half
        if inside.sum() and outside.sum():  # a draw of few examples may lack one side
            values.append(float((inside * below).sum() / (inside.sum() * outside.sum())))
    low, high = torch.tensor(values[1:]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return AUC(values[0], low, high, _found(scores[members], scores[~members]))


def _below(a: Tensor, b: Tensor) -> Tensor:
    """For each of ``a``, the fraction of ``b`` that is smaller, ties counting one half, [len(a)]."""
    b = b.double().sort().values
    a = a.double().contiguous()
    return (torch.searchsorted(b, a) + torch.searchsorted(b, a, right=True)).double() / (2 * len(b))


def _found(members: Tensor, others: Tensor) -> float:
    """The fraction of members above the threshold that 1% of the others exceed."""
    return float((members.double() > others.double().quantile(0.99)).double().mean())
