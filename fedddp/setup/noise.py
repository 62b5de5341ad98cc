"""Noise of a private run: its multiplier, the bounds of an adaptive clip, and the ring of integers that sums it."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..aggregation.ring import fraction_bits
from ..algorithms import QuantileClip
from ..clients import private_steps, sampling_rate
from ..config import ResolvedConfig
from ..errors import UsageError
from ..privacy import MECHANISMS, Mechanism, calibrate_worst
from ..sampling import UniformSampler

NOISE_BEYOND = 12.0
"""Standard deviations that noise never exceeds (probability 1e-32); the ring has room for so many."""
LEAST_NOISE = 2.0
"""Smallest standard deviation of one rank's noise, in units of the ring. From here on a sum of discrete Gaussians is as
good as one draw: they differ by about 10 R exp(-pi^2 std^2) (Kairouz, Liu, Steinke 2021), below 1e-15 R."""


def with_noise(config: ResolvedConfig, sizes: Tensor) -> ResolvedConfig:
    """Fill in the noise multiplier that spends ``privacy.target_epsilon`` in ``run.rounds`` rounds, if it is not given.

    Args:
        config: the resolved configuration.
        sizes: the number of training examples of each client, [N].

    Raises:
        UsageError: no noise multiplier reaches the target.
    """
    keys, target = config.privacy, config.privacy.target_epsilon
    if keys.level == "none" or keys.noise_multiplier is not None or target is None:
        return config
    rate = torch.tensor([config.cohort_size / config.num_clients], dtype=torch.float64)
    steps = torch.tensor([config.run.rounds])
    if mechanism_of(config):
        rate, steps = torch.ones(1), -(-steps // config.separation)
    if keys.level == "example":
        rate, steps = example_level_work(config, sizes)
        steps = steps * participations(config, range(config.run.rounds))
    try:
        sigma = calibrate_worst(target, rate.tolist(), steps.tolist(), keys.delta, keys.accountant)
    except ValueError as error:
        raise UsageError(f"privacy.target_epsilon={target:g}: {error}", code="target-epsilon") from None
    return config.model_copy(update={"privacy": keys.model_copy(update={"noise_multiplier": sigma})})


def mechanism_of(config: ResolvedConfig) -> Mechanism | None:
    """Return the mechanism of correlated noise; None if rounds have independent noise."""
    mechanism = MECHANISMS[config.privacy.mechanism]
    return mechanism(config.separation, config.privacy.bands) if mechanism else None


def example_level_work(config: ResolvedConfig, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sampling rate of each client's examples per step, [N], and its steps per round, [N]."""
    batch_size, epochs = config.client.batch_size, config.client.local_epochs
    known = {n: (sampling_rate(n, batch_size), private_steps(n, epochs, batch_size)) for n in set(sizes.tolist())}
    rate, steps = zip(*(known[n] for n in sizes.tolist()), strict=True)
    return torch.tensor(rate, dtype=torch.float64), torch.tensor(steps)


def heaviest(sizes: Tensor, m: int) -> float:
    """Return the largest weight of a cohort of ``m`` clients: a client weighs at most its examples, or 1."""
    return float(sizes.clamp(min=1).topk(min(m, len(sizes))).values.sum())


def adaptive_clip(config: ResolvedConfig, ranks: int) -> QuantileClip | None:
    """Return the adaptation of the clip of client-level privacy and its bounds; None if the clip is fixed.

    The clip may grow to ``secure_aggregation.bound``, for which the ring has room, and shrink until the noise of each
    of the ``ranks`` is `LEAST_NOISE`, or to 2^-20 of the largest. Raises ValueError where the ring has no room.
    """
    keys, sigma = config.privacy, config.noise_multiplier
    adaptive, largest = keys.adaptive_clip, keys.secure_aggregation.bound
    if not adaptive.enabled:
        return None
    clip = QuantileClip(adaptive.quantile, adaptive.lr, float(config.cohort_size), largest, smallest=largest * 2.0**-20)
    if not sigma:
        return clip
    f = ring_fraction_bits(config, client_ring(config, clip))
    return replace(clip, smallest=max(clip.smallest, LEAST_NOISE * math.sqrt(ranks) / (sigma * 2.0**f)))


def client_ring(config: ResolvedConfig, clip: QuantileClip | None) -> tuple[float, float, float]:
    """Return the largest entry of a clipped update, the weight of all clients, and a bound of their sum's noise."""
    sigma, fixed = config.noise_multiplier, config.privacy.clip
    largest_noise = clip.largest_noise(sigma) if clip else sigma * fixed
    if mechanism := mechanism_of(config):
        largest_noise *= mechanism.largest_std
    entry = max(0.5, clip.largest if clip else fixed)  # adaptive clipping adds a bit of 1/2
    return entry, float(config.num_clients), NOISE_BEYOND * largest_noise


def ring_fraction_bits(config: ResolvedConfig, ring: tuple[float, float, float]) -> int:
    """Return the fraction bits of a ring for (entry, weight, noise) at most. Raises ValueError if none is left."""
    bound, weight, noise = ring
    return fraction_bits(bound, weight, config.privacy.secure_aggregation.bits, noise)


def participations(config: ResolvedConfig, rounds: range) -> Tensor:
    """Return the number of ``rounds`` (0-based) for which each client will be drawn, [N]."""
    population = config.num_clients
    sampler = UniformSampler(population, config.cohort_size, config.run.seed)
    if sampler.size == population:
        return torch.full((population,), len(rounds))
    counts = torch.zeros(population, dtype=torch.long)
    for t in rounds:
        counts[list(sampler.cohort(t).ids)] += 1
    return counts
