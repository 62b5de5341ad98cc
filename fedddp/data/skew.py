"""Feature skew: change each client's inputs in another way, when its examples are looked up.

A skew is a function of (seed, client, which of its examples), so a client's data are the same in every round, on every
rank and however many are looked up at once. The test set is not skewed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, radians, sin
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..rng import derive

Skewing = Callable[[Tensor, int, Sequence[int]], Tensor]
"""``(x [n, ...], client, positions [n]) -> [n, ...]``: the client's examples at these positions, as it has them."""


@dataclass(frozen=True)
class Pictures:
    """Normalised inputs: ``black [...]``, one that is 0 everywhere before, and ``unit [...]``, what 1 is (white)."""

    black: Tensor
    unit: Tensor


@dataclass(frozen=True)
class Skew(ABC):
    @abstractmethod
    def of(self, pictures: Pictures, num_clients: int, seed: int) -> Skewing | None:
        """The function, or None if inputs stay as they are. Raises ValueError for pictures that it cannot change."""
        ...


@dataclass(frozen=True)
class NoSkew(Skew):
    """Inputs as the dataset has them."""

    def of(self, pictures: Pictures, num_clients: int, seed: int) -> None:
        """Nothing to do."""
        return


@dataclass(frozen=True)
class Noise(Skew):
    """Gaussian noise on the pixels, of standard deviation sigma (i + 1) / N on client i (Li et al. 2022, NIID-Bench).

    Pixels are scaled to [0, 1] and not cut off there. An example has the same noise whenever it is looked up.
    """

    sigma: Annotated[float, Field(gt=0, le=1e9, description="of the last client; pixels lie in [0, 1]")] = 0.1

    def of(self, pictures: Pictures, num_clients: int, seed: int) -> Skewing:
        """See `Skew.of`."""
        if not pictures.black.is_floating_point():
            raise ValueError(
                f"data.skew.name=noise: adds Gaussian noise to pixels or measurements; inputs are "
                f"{pictures.black.dtype}; use data.skew.name=none"
            )
        stream = torch.Generator()

        def noisy(x: Tensor, client: int, positions: Sequence[int]) -> Tensor:
            noise = torch.empty(len(positions), *x.shape[1:])  # float32 whatever x is: the same noise in all precisions
            for own, position in zip(noise, positions, strict=True):
                own.normal_(generator=stream.manual_seed(derive(seed, "skew", client, position)))
            return x + self.sigma * (client + 1) / num_clients * pictures.unit * noise.to(x)

        return noisy


@dataclass(frozen=True)
class Rotation(Skew):
    """Images turned anticlockwise, by the angle of the client's cluster, which is client mod number of angles.

    Four clusters at 0, 90, 180 and 270 degrees are rotated MNIST of IFCA (Ghosh et al. 2020, section 6.2). Multiples
    of 90 degrees move pixels exactly; other angles interpolate between them, with black from outside.
    """

    angles: Annotated[
        tuple[Annotated[float, Field(ge=-3600, le=3600)], ...],
        Field(min_length=1, description="degrees, one per cluster of clients"),
    ] = (
        0.0,
        90.0,
        180.0,
        270.0,
    )

    def of(self, pictures: Pictures, num_clients: int, seed: int) -> Skewing:
        """See `Skew.of`."""
        shape = tuple(pictures.black.shape)
        if len(shape) != 3 or (shape[1] != shape[2] and any(angle % 180 for angle in self.angles)):
            raise ValueError(
                f"data.skew.angles={list(self.angles)}: these turn square images [C, H, H]; inputs are {list(shape)}; "
                "use data.skew.name=none or noise"
            )

        def turned(x: Tensor, client: int, positions: Sequence[int]) -> Tensor:
            angle = self.angles[client % len(self.angles)]
            if angle % 90 == 0:
                return torch.rot90(x, int(angle // 90), (-2, -1))
            return _turned(x - pictures.black, angle) + pictures.black

        return turned


def _turned(x: Tensor, angle: float) -> Tensor:
    """``x [n, C, H, W]`` by any angle around the centre, 0 from outside."""
    c, s = cos(radians(angle)), sin(radians(angle))
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0]], dtype=x.dtype, device=x.device)  # from new to old coordinates
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


SKEWS: dict[str, type] = {"none": NoSkew, "noise": Noise, "rotation": Rotation}
