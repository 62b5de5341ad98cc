"""Banded matrix factorization: noise that later rounds take back, as far as a client's next participation allows."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Banded:
    """C is lower triangular, Toeplitz and has ``bands`` bands, at most as many as the separation of participations.

    Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu 2023, "(Amplified) banded matrix factorization: a
    unified approach to private training". The entries are not optimised but those of Kalinin, Lampert 2024, "Banded
    square root matrix factorization for differentially private model training": the first coefficients of
    (1 - x)^(-1/2), divided by their norm. One band is independent noise. The noise of release t is

        n_t = |c| z_t - sum_{0 < i < bands} c_i n_{t-i},    c_0 = 1, c_i = c_{i-1} (2 i - 1) / (2 i)

    so that ``bands`` - 1 vectors of float64 are kept.
    """

    bands: int

    @property
    def coefficients(self) -> np.ndarray:
        """c, [bands]; not divided by their norm."""
        i = np.arange(1, self.bands)
        return np.cumprod(np.concatenate([[1.0], (2 * i - 1) / (2 * i)]))

    @property
    def largest_std(self) -> float:
        """See `Mechanism`. Rows of C^-1 grow towards the coefficients of |c| / c(x), whose norm is Parseval's."""
        c = self.coefficients
        return float(np.linalg.norm(c) * np.mean(np.abs(np.fft.fft(c, 64 * self.bands)) ** -2.0) ** 0.5)

    def noise(self, draw: Callable[[], Tensor]) -> Iterator[Tensor]:
        """See `Mechanism`."""
        c = self.coefficients
        norm, past = float(np.linalg.norm(c)), deque[Tensor](maxlen=self.bands - 1)
        while True:
            row = draw() * norm
            for weight, earlier in zip(c[1:].tolist(), past, strict=False):
                row.sub_(earlier, alpha=weight)
            past.appendleft(row)
            yield row
