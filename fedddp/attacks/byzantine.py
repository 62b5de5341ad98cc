"""The interface of attacks by Byzantine clients, and those on labels and updates, simulated to test a rule.

`Attack` changes nothing; each attack overrides what it changes. Colluding clients that know the honest updates (`ALIE`,
`IPM`) all send the same inconspicuous vector; both are coordinate-wise, so that they apply to any columns.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..aggregation.rules import summed
from ..data import Examples


@dataclass(frozen=True)
class Attack:
    """Base class of attacks: the number of Byzantine clients."""

    num_clients: Annotated[
        int,
        Field(
            ge=0,
            le=10_000_000,
            description="how many clients are Byzantine, drawn from the seed; 0 = a clean run, watched",
        ),
    ] = 1

    of_classes: ClassVar[bool] = False
    """Whether examples get other classes as their targets."""
    omniscient: ClassVar[bool] = False
    """True if it needs the honest clients' updates."""

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        """The examples that a Byzantine client trains on instead of its own, of the same number."""
        return own

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        """The vector [d] that it uploads instead of ``row``."""
        return row

    def columns(self, x: Tensor, byzantine: Tensor) -> Tensor:
        """The columns that the rule gets instead of ``x [m, c]``, of all updates; ``byzantine`` bool [m]."""
        return x

    def probes(self, test: Examples, num_classes: int) -> Mapping[str, Examples]:
        """Sets of examples on which accuracy measures the attack's success, by the metric's name.

        Raises ValueError if the attack is impossible on such examples, whether or not a client is Byzantine.
        """
        return {}


@dataclass(frozen=True)
class NoAttack(Attack):
    """No attack: all clients are honest."""

    num_clients: Annotated[
        int,
        Field(
            ge=0, le=10_000_000, description="how many clients are Byzantine, drawn from the seed; 1 with any attack"
        ),
    ] = 0

    def __post_init__(self) -> None:
        if self.num_clients:
            raise ValueError(f"num_clients={self.num_clients} has no effect with attack.name=none; name an attack")


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Labels are flipped, y -> C - 1 - y, on all examples of Byzantine clients (Fang, Cao, Jia, Gong 2020)."""

    of_classes: ClassVar[bool] = True

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        return Examples(own.x, num_classes - 1 - own.y)


@dataclass(frozen=True)
class SignFlip(Attack):
    """Honest updates are reversed, x -> -scale x (Li, Xu, Chen, Giannakis, Ling 2019)."""

    scale: Annotated[float, Field(gt=0, le=1e9, description="how much longer the reversed update is")] = 1.0

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return -self.scale * row


@dataclass(frozen=True)
class Gaussian(Attack):
    """Updates are noise alone, x -> N(0, std^2 I) (Blanchard et al. 2017)."""

    std: Annotated[float, Field(gt=0, le=1e9, description="standard deviation of each coordinate")] = 1.0

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return (self.std * torch.randn(len(row), generator=stream, dtype=row.dtype)).to(row.device)


@dataclass(frozen=True)
class Colluding(Attack):
    """Base class of attacks in which all Byzantine clients send the same function of the honest updates."""

    omniscient: ClassVar[bool] = True

    @abstractmethod
    def sent(self, honest: Tensor, mean: Tensor, m: int) -> Tensor:
        """Some columns [c] of what each sends. ``honest [m - f, c]`` and their ``mean [c]``; m clients in all."""

    def columns(self, x: Tensor, byzantine: Tensor) -> Tensor:
        honest = x[~byzantine]
        if not len(honest):
            return x
        return torch.where(byzantine[:, None], self.sent(honest, summed(honest) / len(honest), len(x)), x)


@dataclass(frozen=True)
class ALIE(Colluding):
    """Updates lie just within the spread of honest ones ("a little is enough").

    Baruch, Baruch, Goldberg 2019, "A little is enough: circumventing defenses for distributed learning":
    x -> mean - z std of the honest updates, coordinate by coordinate: within the spread that honest clients have
    anyway. (The paper's attackers estimate both from the updates they own; here they know the honest ones.)
    """

    z: Annotated[
        float,
        Field(
            ge=0, le=1e9, description="standard deviations from the mean; 0 = the largest that the paper's count gives"
        ),
    ] = 1.5

    def sent(self, honest: Tensor, mean: Tensor, m: int) -> Tensor:
        std = (summed((honest - mean).square()) / len(honest)).sqrt()
        return mean - (self.z or z_max(m, m - len(honest))) * std


def z_max(m: int, f: int) -> float:
    """Phi^-1((m - f - s) / (m - f)), s = floor(m / 2 + 1) - f honest supporters to win over; at least 0."""
    supporters = m // 2 + 1 - f
    quantile = torch.tensor((m - f - supporters) / (m - f), dtype=torch.float64)
    return max(0.0, float(torch.special.ndtri(quantile.clamp(max=1 - 1e-9))))


@dataclass(frozen=True)
class IPM(Colluding):
    """Updates are the reversed mean of the honest ones (inner product manipulation).

    Xie, Koyejo, Gupta 2020, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation":
    x -> -epsilon mean of the honest updates: small, it passes for one of them; above (m - f) / f, it turns the mean.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e9, description="length of the reversed mean")] = 0.5

    def sent(self, honest: Tensor, mean: Tensor, m: int) -> Tensor:
        return -self.epsilon * mean


@dataclass(frozen=True)
class Backdoor(Attack):
    """Byzantine clients train a backdoor: pictures with a small mark are classified as ``target``.

    ``attack_success``: fraction of marked test images of other classes that are classified as the target.
    """

    of_classes: ClassVar[bool] = True

    target: Annotated[int, Field(ge=0, le=1_000_000, description="the class that the mark stands for")] = 0
    share: Annotated[
        float, Field(gt=0, le=1, description="fraction of a Byzantine client's examples that is marked")
    ] = 0.5
    size: Annotated[int, Field(ge=1, le=10_000, description="side of the mark, in pixels")] = 4
    boost: Annotated[
        float, Field(gt=0, le=1e9, description="factor on the update; clients / num_clients replaces the model")
    ] = 1.0

    def examples(self, own: Examples, num_classes: int, stream: torch.Generator) -> Examples:
        rows = torch.randperm(len(own), generator=stream)[: round(self.share * len(own))]
        x, y = own.x.clone(), own.y.clone()
        x[rows], y[rows] = self.marked(x[rows]), self.target
        return Examples(x, y)

    def update(self, row: Tensor, stream: torch.Generator) -> Tensor:
        return self.boost * row

    def probes(self, test: Examples, num_classes: int) -> Mapping[str, Examples]:
        if self.target >= num_classes:
            raise ValueError(f"attack.target={self.target}: there are {num_classes} classes, 0 to {num_classes - 1}")
        others = test.y != self.target
        return {"attack_success": Examples(self.marked(test.x[others]), torch.full_like(test.y[others], self.target))}

    def marked(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] with the mark, one pixel from the corner's edges, as bright as anything in them."""
        if x.dim() != 4 or min(x.shape[2:]) <= self.size:
            raise ValueError(f"attack.size={self.size}: inputs of shape {list(x.shape[1:])} are too small for the mark")
        x = x.clone()
        brightest = 255 if x.dtype == torch.uint8 else x.amax() if len(x) else 1
        x[:, :, -1 - self.size : -1, -1 - self.size : -1] = brightest
        return x
