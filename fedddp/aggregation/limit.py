"""Refuse updates that are far too long: one client that diverges with finite numbers would ruin the model for good.

    ||u_k|| > 1000 max_s M_s,   M_s = sum_k w_k ||u_k|| / sum_k w_k in round s

The bound follows from what all ranks know of the rounds before, so it is the same for any number of ranks, and after a
resume. The first round has none before it: it is aborted if one update is 1000 times as long as its median. This is
for accidents. Who wants to do harm stays below the bound; robust rules (`aggregation.rule`) are against that.
"""

from math import inf, isfinite
from statistics import median

from torch import Tensor

from ..types import Report, RoundAborted

TIMES = 1000.0


class NormLimit:
    """The largest norm that an update may have.

    Args:
        fixed: the norm that nothing may exceed.
        relative: whether the rounds before bound it too; only if reports have ``update_norm``.

    Attributes:
        largest: the largest mean norm of a round so far, 0 before the first.
    """

    def __init__(self, fixed: float = inf, *, relative: bool = False) -> None:
        self._fixed, self._relative, self.largest = fixed, relative, 0.0

    @property
    def bound(self) -> float:
        """The largest norm that is accepted now."""
        return min(self._fixed, TIMES * self.largest) if self._relative and self.largest else self._fixed

    def why(self, norm: float) -> str:
        """Return why an update of this ``norm`` is refused."""
        if norm > self._fixed:
            return f"its update has norm {norm:.3g}, more than aggregation.max_norm={self._fixed:g}"
        return (
            f"its update has norm {norm:.3g}, more than {TIMES:g} times the mean norm of any round before "
            f"({self.largest:.3g}); client.optimizer.lr may be too large for it, or aggregation.max_norm=off"
        )

    def check_first(self, norms: Tensor) -> None:
        """Raise RoundAborted if no round was before and one of the ``norms`` of this one is far above the others."""
        known = sorted(n for n in norms.tolist() if n > 0)
        if not self._relative or self.largest or len(known) < 3 or known[-1] <= TIMES * median(known):
            return
        self.largest = median(known)
        raise RoundAborted(
            f"an update has norm {known[-1]:.3g}, {TIMES:g} times the median {self.largest:.3g} of this first round; "
            "from now on such updates are refused (aggregation.max_norm=off accepts them)"
        )

    def learn(self, report: Report) -> None:
        """Take the ``report`` of a finished round into account."""
        if report.update_norm is not None and isfinite(report.update_norm):
            self.largest = max(self.largest, report.update_norm)
