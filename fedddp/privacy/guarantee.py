"""A privacy guarantee: epsilon with everything that it depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .accounting import Accountant


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy, for whom, under which sampling, and by whose sums.

    ``adjacency``: by what neighbouring data sets differ. ``sampling``: how the units of each step were drawn.
    """

    epsilon: float
    delta: float
    adjacency: str
    sampling: str
    accountant: Accountant

    def text(self) -> str:
        """One line that names them all."""
        spent = "without bound" if math.isinf(self.epsilon) else f"{self.epsilon:.4g}"
        return f"epsilon {spent} {self.terms}"

    @property
    def terms(self) -> str:
        """Everything but the figure, which means nothing without."""
        return f"at delta {self.delta:g} ({self.adjacency}; {self.sampling}; {self.accountant} accountant)"
