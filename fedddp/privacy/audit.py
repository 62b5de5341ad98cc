"""Bound epsilon from below by what an observer finds out about canaries.

Each of m canaries takes part with probability 1/2, and an observer of all that is released scores them: the higher, the
more likely it took part. If epsilon held, the scores could tell only so much. Two bounds:

- `one_run`: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", Corollary 5.4 and Appendix D.
  The observer guesses on r canaries and abstains on the others. It assumes nothing about the mechanism, and is the
  better one at a small delta.
- `threshold`: the share of canaries above a threshold among those that took part (TPR) and those that did not (FPR);
  (epsilon, delta) demands TPR <= e^epsilon FPR + delta. Clopper and Pearson's bounds of both, as Nasr et al. 2023
  ("Tight auditing of differentially private machine learning") use them. It takes canaries for independent, as they
  are where each lies along coordinates of its own under independent noise, and is the better one at a large delta,
  where halved noise shows first.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GUESSED = 0.2
"""Share of the canaries on which `one_run` guesses. Fixed beforehand: the best share for the scores at hand would have
been chosen by what it shows."""
NORMAL_QUARTILE = 0.3186
"""Of |x| for a standard normal x."""
LEAST_SIGMA = 1e-3


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Return a bound of the probability that v or more of r guesses on m canaries are right under (epsilon, delta).

    P[X >= v] + 2 m delta max_i P[v - i <= X < v] / i over i = 1 ... v, where X ~ Binomial(r, 1 / (1 + e^-epsilon)).
    """
    from scipy.stats import binom  # half a second, which only an audit needs

    right, i = 1 / (1 + math.exp(-epsilon)), np.arange(1, v + 1)
    below = np.cumsum(binom.pmf(v - i, r, right))
    return min(1.0, float(binom.sf(v - 1, r, right)) + 2 * m * delta * float(np.max(below / i, initial=0.0)))


def one_run(m: int, r: int, v: int, delta: float, p: float) -> float:
    """Return the largest epsilon that v right ones of r guesses on m canaries refute at significance ``p``; else 0."""
    least, most = 0.0, 1.0
    if p_value(m, r, v, 0.0, delta) >= p:
        return 0.0
    while p_value(m, r, v, most, delta) < p:
        most *= 2
    for _ in range(40):
        middle = (least + most) / 2
        least, most = (middle, most) if p_value(m, r, v, middle, delta) < p else (least, middle)
    return least


def at_most(hits: int, of: int, p: float) -> float:
    """Return Clopper and Pearson's upper bound of a probability, which it exceeds with probability ``p`` at most."""
    from scipy.stats import beta

    return 1.0 if hits == of else float(beta.ppf(1 - p, hits + 1, of - hits))


def threshold(hits: int, included: int, false: int, excluded: int, delta: float, p: float) -> float:
    """Return the least epsilon that TPR and FPR allow: ln((TPR - delta) / FPR), or 0; each bounded at ``p`` / 2.

    For all values of ``delta`` together it exceeds the truth with probability ``p`` at most: only the two rates are
    estimated.
    """
    tpr, fpr = 1 - at_most(included - hits, included, p / 2), at_most(false, excluded, p / 2)
    return math.log(max((tpr - delta) / fpr, 1.0))


class Canaries:
    """Canaries, which of them take part, and what an observer has seen of them, in one run or in several."""

    def __init__(self) -> None:
        self.included = torch.zeros(0, dtype=torch.bool)  # [m]
        self._seen: list[tuple[slice, Tensor, float, Tensor]] = []

    def __len__(self) -> int:
        return len(self.included)

    def add(self, m: int, stream: torch.Generator) -> slice:
        """Add m canaries, each included with probability 1/2, and return their rows."""
        rows = slice(len(self), len(self) + m)
        self.included = torch.cat([self.included, torch.rand(m, generator=stream) < 0.5])
        return rows

    def see(self, rows: slice, x: Tensor, q: float, adds: Tensor | float = 1.0) -> None:
        """Note what one release shows of the canaries ``rows``.

        Args:
            rows: the canaries.
            x: the release's component along each of them, in units of the clip, [m].
            q: the probability that one that takes part is in the release.
            adds: what it adds to the component then, [m].
        """
        self._seen.append((rows, x.float(), q, torch.as_tensor(adds, dtype=torch.float64)))

    def scores(self) -> Tensor:
        """Return the log-likelihood ratio of everything seen of each canary, with and without it, float64 [m].

        That of a release is ln(1 - q + q exp((a x - a^2 / 2) / sigma^2)), as x is N(a, sigma^2) or, if the canary was
        not drawn, N(0, sigma^2). The observer believes no claim and measures sigma: most components are noise alone,
        since a canary is drawn with probability q / 2.
        """
        scores = torch.zeros(len(self), dtype=torch.float64)
        if not self._seen:
            return scores
        quartile = np.quantile(torch.cat([x for _, x, _, _ in self._seen]).abs().numpy(), 0.25)
        sigma = max(float(quartile) / NORMAL_QUARTILE, LEAST_SIGMA)
        for rows, x, q, a in self._seen:
            odds = (a * x.double() - a * a / 2) / sigma**2
            scores[rows] += torch.logaddexp(torch.tensor(1 - q, dtype=torch.float64).log(), math.log(q) + odds)
        return scores

    def bounds(self, scores: Tensor, deltas: Sequence[float], p: float) -> list[float]:
        """Return for each of ``deltas`` a lower bound of epsilon. Together they hold with probability 1 - ``p``.

        The first is the better one of both bounds; the others are those of `threshold`, at a score of 0.
        """
        m, guess = len(self), scores > 0
        surest = scores.abs().argsort(descending=True, stable=True)[: round(GUESSED * m)]
        right = int((guess == self.included)[surest].sum())
        hits, false = int((guess & self.included).sum()), int((guess & ~self.included).sum())
        included = int(self.included.sum())
        found = [threshold(hits, included, false, m - included, delta, p / 2) for delta in deltas]
        return [max(found[0], one_run(m, len(surest), right, deltas[0], p / 2)), *found[1:]]
