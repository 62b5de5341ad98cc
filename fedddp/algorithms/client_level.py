"""DP-FedAvg: a client's whole update is clipped, so that noise on the sum can hide that it took part.

McMahan, Ramage, Talwar, Zhang 2018, "Learning differentially private recurrent language models", Algorithm 1 with flat
clipping, uniform weights and the fixed denominator q N:

    w_{t+1} = w_t + (1 / q N) (sum_{k in S_t} delta_k min(1, C / |delta_k|) + N(0, (sigma C)^2 I))

S_t is a Poisson sample of rate q. The denominator is a constant, because how many took part is private too. Here is the
clip and its adaptation; the noise is added where the sum is made (`ClientLevel.noise_std` says how much), the
denominator is the pipeline's.

Adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping",
Algorithm 1: C follows a quantile of the updates' norms by what share of them was not clipped, itself found privately.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import Around, LocalTraining

CLIP = "privacy.clip"
"""In ``ServerState.extra``: C_t, where it is adaptive."""
BIT = "privacy.unclipped"
"""The vector of length 1 that carries +1/2 of a client that was not clipped, -1/2 of one that was."""
_BELOW = 1 - 2.0**-20  # scaled to this much of C: rounding to float32 cannot bring the norm above C


@dataclass(frozen=True)
class QuantileClip:
    """C_{t+1} = C_t exp(-lr (b_t - quantile)), b_t the noised share of clients whose update was not clipped.

    ``expected``: n = q N, by which the sum of bits is divided. C is never above ``largest``, nor below ``smallest``.
    """

    quantile: float
    lr: float
    expected: float
    largest: float
    smallest: float

    def split(self, sigma: float) -> tuple[float, float]:
        """z_delta and sigma_b, the noise of the updates (in units of C) and of the sum of bits.

        Together they cost what ``sigma`` alone would: z_delta = (sigma^-2 - (2 sigma_b)^-2)^(-1/2). sigma_b = n / 20 as
        in the paper, but not below sigma: else there is no such z_delta for small cohorts. So z_delta is never more
        than 1.155 sigma. Without noise both are 0.
        """
        if sigma == 0:
            return 0.0, 0.0
        bits = max(self.expected / 20, sigma)
        return (sigma**-2 - (2 * bits) ** -2) ** -0.5, bits

    def largest_noise(self, sigma: float) -> float:
        """No round's noise has a larger standard deviation, in updates or bits."""
        update, bit = self.split(sigma)
        return max(update * self.largest, bit)

    def bounded(self, clip: float) -> float:
        return min(max(clip, self.smallest), self.largest)

    def after(self, clip: float, share: float) -> float:
        """The next C, after a round in which a ``share`` of the clients was not clipped."""
        return self.bounded(clip * math.exp(-self.lr * (share - self.quantile)))


@dataclass(frozen=True)
class ClientLevel(Around):
    """Any algorithm ``inner``, its clients' updates clipped to ``clip`` over all their vectors together, weighing 1.

    What is private is what the server gets, hence the model and all that follows from it; what ``inner`` keeps on a
    client stays there. Its ``server_update`` sees no participants: the cohort it gets is empty. Raises ValueError
    for a clip that is not positive, for one outside the bounds of ``adaptive``, and for negative noise.
    """

    own = (CLIP,)
    clip: float
    noise_multiplier: float
    adaptive: QuantileClip | None = None

    def __post_init__(self) -> None:
        if not (0 < self.clip < math.inf and 0 <= self.noise_multiplier < math.inf):
            raise ValueError(f"cannot clip to {self.clip:g} with noise {self.noise_multiplier:g}")
        if self.adaptive and not self.adaptive.smallest <= self.clip <= self.adaptive.largest:
            bounds = f"{self.adaptive.smallest:g} and {self.adaptive.largest:g}"
            raise ValueError(f"cannot clip to {self.clip:g}: an adaptive clip lies between {bounds}")

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {**self.inner.vectors(spec), **({BIT: 1} if self.adaptive else {})}

    def current_clip(self, server: ServerState) -> float:
        """C_t."""
        return float(server.extra[CLIP]) if self.adaptive else self.clip

    def noise_std(self, server: ServerState) -> dict[str, float]:
        """Of the noise in the SUM over clients, for each of `vectors`, in round ``server.round``."""
        update, bit = self.adaptive.split(self.noise_multiplier) if self.adaptive else (self.noise_multiplier, 0.0)
        stds = dict.fromkeys(self.inner.vectors(server.spec), update * self.current_clip(server))
        return {**stds, BIT: bit} if self.adaptive else stds

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = self.inner.init_server(w, spec)
        return self._with_clip(server, self.clip) if self.adaptive else server

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = super().client_update(server, client, local)
        vectors, unclipped = clipped(update.vectors, self.current_clip(server))
        if self.adaptive:
            vectors[BIT] = (unclipped.to(result.delta) - 0.5)[:, None]
        # 1, or 0 of a client to which its algorithm gives no weight: one client moves the sum by no more than C
        return Update(vectors, (update.weight > 0).to(update.weight)), state, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        vectors = dict(mean.vectors)
        bit = vectors.pop(BIT, None)
        nobody = Cohort(cohort.round, (), cohort.population)
        after = super().server_update(server, replace(mean, vectors=vectors), nobody)
        if self.adaptive is None or bit is None:
            return after
        return self._with_clip(after, self.adaptive.after(self.current_clip(server), float(bit) + 0.5))

    def _with_clip(self, server: ServerState, clip: float) -> ServerState:
        return self.remembering(server, {CLIP: server.w.new_tensor([clip], dtype=torch.float64)})


def clipped(vectors: Mapping[str, Tensor], clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Every client's ``vectors`` (name -> [K, d]) scaled alike to a joint L2 norm of at most ``clip``.

    And which clients [K] were within it. One whose norm is not finite, or 2^100 times the clip, becomes NaN, for the
    pipeline to refuse: a float32 scale below 2^-126 has too few digits to promise a norm.
    """
    norms = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in vectors.values()]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    within = norm <= clip
    scale = torch.where(within, 1.0, clip * _BELOW / norm).masked_fill(~(norm <= 2.0**100 * clip), math.nan)
    return {name: rows * scale.to(rows)[:, None] for name, rows in vectors.items()}, within
