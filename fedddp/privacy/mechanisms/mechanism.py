"""What a mechanism of correlated noise is."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor


class Mechanism(Protocol):
    """Noise for one release after the other."""

    @property
    def largest_std(self) -> float:
        """A bound of the standard deviation of a release's noise, in units of the standard deviation of z."""
        ...

    def noise(self, draw: Callable[[], Tensor]) -> Iterator[Tensor]:
        """Yield the rows of C^-1 z, one for each release, without end; ``draw`` returns a new standard normal z_t."""
        ...
