"""What a link allows: seconds of communication, the share of a round that is training, the bandwidth that is needed.

With V bytes that a rank sends in a round of H local steps, each of t seconds:

    average rate  8 V / (H t)                  what the link carries over a whole round
    peak rate     8 V / (P D t)                so that no step waits longer than the next ones take

P fragments are sent apart, D = max(1, round(H / P)) steps from each other. A vector that is sent whole (P = 1) is sent
between two steps: D = 1. For V = 2 x parameters x bytes, an all-reduce over many ranks, these are the formulas of
MaxText's documentation (docs/reference/core_concepts/diloco.md, "Sizing the Link").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 0.1
"""The share of a round that communication may take, by which H is chosen."""


@dataclass(frozen=True)
class Exchange:
    """The communication of a round, and the training beside it.

    Attributes:
        sent: bytes that a rank sends.
        steps: local steps H of a client; a mean where clients differ.
        step: seconds that one more step of every client of a rank takes together; None if it is not known.
        fixed: seconds of a rank's training that do not depend on the number of steps.
        evaluation: seconds of evaluation in a round, in the mean.
        fragments: the number of parts that are sent apart.
    """

    sent: float
    steps: float
    step: float | None = None
    fixed: float = 0.0
    evaluation: float = 0.0
    fragments: int = 1

    @property
    def training(self) -> float | None:
        """Seconds of training in a round."""
        return None if self.step is None else self.fixed + self.steps * self.step

    @property
    def average(self) -> float | None:
        """The average rate, in Mbit/s."""
        return 8e-6 * self.sent / self.training if self.training else None

    @property
    def peak(self) -> float | None:
        """The peak rate, in Mbit/s."""
        apart = 1 if self.fragments == 1 else max(1, round(self.steps / self.fragments))
        return 8e-6 * self.sent / self.fragments / (apart * self.step) if self.step else None

    def seconds(self, link: float) -> float:
        """Return the seconds of communication in a round over a link of so many Mbit/s."""
        return 8e-6 * self.sent / link

    def round(self, link: float) -> float | None:
        """Return the seconds of a round."""
        return None if self.training is None else self.training + self.seconds(link) + self.evaluation

    def utilisation(self, link: float) -> float | None:
        """Return the share of a round that is training."""
        whole = self.round(link)
        return self.training / whole if whole and self.training is not None else None

    def least_steps(self, link: float) -> int | None:
        """Return the least H with which communication takes less than `MOST` of training and communication."""
        if not self.step:
            return None
        training = self.seconds(link) * (1 - MOST) / MOST
        return max(1, math.floor((training - self.fixed) / self.step) + 1)
