"""Whether what the privacy section promises can be kept on this run: found out by each rank alone, before it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..aggregation.compression import NoCompression
from ..aggregation.ring import fraction_bits
from ..algorithms import AdaptiveClip
from ..clients import private_steps, sampling_rate
from ..comm.world import Place
from ..config import Config, UsageError, to_dict
from ..config.schema import Privacy, SecureAggregation
from ..flat import FlatSpec
from ..privacy import calibrate_worst, check_installed
from ..privacy.refuse import mixing_layers, refusals
from ..sampling import UniformSampler
from ..secure import LEAST_PARTIES, Identity, IdentityError, Roster, identity_of
from ..types import Delivery

NOISE_BEYOND = 12.0
"""More standard deviations of noise than ever occur (probability 1e-32): the ring has room for so many."""
LEAST_SHARE = 2.0
"""A rank's share of the noise, in units of the ring. From here on a sum of discrete Gaussians passes for one: they
differ by about 10 R exp(-pi^2 share^2) (Kairouz, Liu, Steinke 2021), below 1e-15 R."""


def secured(config: Config, place: Place, sizes: Tensor, module: nn.Module, *, shared: bool = False) -> Config:
    """The configuration with the noise filled in, for clients of ``sizes`` [N] that train ``module``.

    ``shared``: whether an example may belong to several clients. Raises UsageError, naming key and remedy, for what
    cannot be kept.
    """
    keys = config.privacy
    reasons = refusals(
        keys.level,
        noise_multiplier=keys.noise_multiplier,
        target_epsilon=keys.target_epsilon,
        delta=keys.delta,
        units=len(sizes) if keys.level == "client" else int(sizes.sum()),
        weighting=getattr(config.algorithm, "weighting", None),
        mixing=mixing_layers(module),
        clip=None if keys.clip == Privacy().clip else keys.clip,
        adaptive_clip=keys.adaptive_clip.enabled,
        uncounted=_uncounted(config),
        shared=shared,
    )
    if reasons:
        raise UsageError(reasons[0])
    if keys.level != "none" and keys.noise_multiplier != 0:  # without noise, epsilon is infinite
        try:
            check_installed()
        except ValueError as error:
            raise UsageError(f"privacy.level={keys.level}: {error}") from None
    _check_parties(config, place)
    config = _with_noise(config, sizes)
    _check_ring(config, place, sizes)
    return config


def check_compression(config: Config, spec: FlatSpec) -> None:
    """Raises UsageError where compression and another key exclude each other, or it has nothing to compress."""
    compression, privacy = config.aggregation.compression, config.privacy
    if isinstance(compression, NoCompression):
        return
    name = to_dict(config)["aggregation"]["compression"]["name"]
    other = "secure_aggregation.enabled=true" if privacy.secure_aggregation.enabled else "level=client"
    if privacy.secure_aggregation.enabled or privacy.level == "client":
        raise UsageError(
            f"aggregation.compression.name={name}: masks and noise of privacy.{other} need updates as integers of one "
            "ring, and compressed ones are not; use compression none"
        )
    algorithm = config.algorithm.for_model(spec)
    if not compression.columns(algorithm.vectors(spec.dim), algorithm.uploaded(spec)).squeezed:
        raise UsageError(
            f"aggregation.compression.name={name}: would make nothing of this model's updates smaller; use a smaller "
            "rank, another compression, or none"
        )


def delivery(config: Config) -> Delivery:
    """How uploads reach the mean: what a ring of 32 bits cuts off is lost as well."""
    ring = config.privacy.secure_aggregation
    return "lossy" if ring.enabled and ring.bits == 32 else config.aggregation.compression.delivery


def told(config: Config) -> list[str]:
    """What a run says of its privacy at start, a line each."""
    keys, lines = config.privacy, []
    if config.data.name != "parts":
        lines.append(
            f"simulation: every rank can read all of {config.data.name}; where ranks must not see each other's, "
            "divide it first (fedddp split)"
        )
    if keys.secure_aggregation.enabled and not keys.secure_aggregation.roster:
        lines.append("secure aggregation without a roster: keys are made at start, and nobody is authenticated")
    if keys.level != "none":
        noise = f"clip {keys.clip:g}, sigma {keys.noise_multiplier:g}{caveat(config)}"
        lines.append(f"private at {keys.level} level: {noise}")
    if keys.level == "client" and not keys.secure_aggregation.enabled:
        lines.append(
            "client level without secure aggregation: epsilon is that of the sums; a neighbour in the ring sees one "
            "rank's, under that rank's share of the noise only"
        )
    return lines


def caveat(config: Config) -> str:
    """What has to stand beside every figure of a run whose noise can be predicted."""
    seeded = config.privacy.randomness == "seeded"
    return "; but privacy.randomness=seeded: this noise can be predicted and guarantees nothing" if seeded else ""


def cohort_size(config: Config) -> int:
    """m = max(C N, 1), or what was asked for."""
    population = config.data.partition.num_clients
    if config.cohort.size is not None:
        return config.cohort.size
    return max(1, round((config.cohort.fraction or 1.0) * population))


def heaviest(sizes: Tensor, m: int) -> float:
    """The largest weight that a cohort of ``m`` clients can have: a client weighs no more than its examples, or 1."""
    return float(sizes.clamp(min=1).topk(min(m, len(sizes))).values.sum())


def example_level_work(config: Config, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """How likely each client's examples are to be drawn in a step [N], and its steps in a round [N]."""
    batch_size, epochs = config.client.batch_size, config.client.local_epochs
    known = {n: (sampling_rate(n, batch_size), private_steps(n, epochs, batch_size)) for n in set(sizes.tolist())}
    rate, steps = zip(*(known[n] for n in sizes.tolist()), strict=True)
    return torch.tensor(rate, dtype=torch.float64), torch.tensor(steps)


def following(config: Config, ranks: int) -> AdaptiveClip | None:
    """How the clip of client-level privacy follows the updates' norms, and between which bounds; None if it is fixed.

    It may be as large as `secure_aggregation.bound`, for which the ring has room, and as small as leaves each of the
    ``ranks`` `LEAST_SHARE` of the noise, or 2^-20 of the largest. Raises ValueError where the ring has no room.
    """
    keys, sigma = config.privacy, config.privacy.noise_multiplier
    adaptive, largest = keys.adaptive_clip, keys.secure_aggregation.bound
    if not adaptive.enabled:
        return None
    expected = float(cohort_size(config))
    follow = AdaptiveClip(adaptive.quantile, adaptive.lr, expected, largest, smallest=largest * 2.0**-20)
    if not sigma:
        return follow
    f = _fraction_bits(config, client_ring(config, follow))
    return replace(follow, smallest=max(follow.smallest, LEAST_SHARE * math.sqrt(ranks) / (sigma * 2.0**f)))


def client_ring(config: Config, follow: AdaptiveClip | None) -> tuple[float, float, float]:
    """The largest entry of a clipped update, the weight of all clients, and a bound of the noise in their sum."""
    keys, sigma = config.privacy, config.privacy.noise_multiplier or 0.0
    noise = follow.largest_noise(sigma) if follow else sigma * keys.clip
    entry = max(0.5, follow.largest if follow else keys.clip)  # adaptive clipping adds a bit of 1/2
    return entry, float(config.data.partition.num_clients), NOISE_BEYOND * noise


def _uncounted(config: Config) -> str | None:
    """By which key clients do other work than E epochs."""
    for key in ("local_steps", "stragglers"):
        if value := getattr(config.client, key):
            return f"client.{key}={value:g}"
    return None


def _check_parties(config: Config, place: Place) -> None:
    keys = config.privacy.secure_aggregation
    if not keys.enabled:
        for given in ("roster", "key"):
            if getattr(keys, given):
                raise UsageError(
                    f"privacy.secure_aggregation.{given}={getattr(keys, given)!r}: has no effect, updates would be "
                    f"sent unmasked; add privacy.secure_aggregation.enabled=true, or leave {given} out"
                )
        return
    if place.world_size < LEAST_PARTIES:
        raise UsageError(
            f"privacy.secure_aggregation.enabled=true: needs {LEAST_PARTIES} ranks or more, not {place.world_size}: "
            "of two, each learns the other's update from the sum; start more with torchrun --nproc_per_node"
        )
    for given, missing in (("roster", "key"), ("key", "roster")):
        if getattr(keys, given) and not getattr(keys, missing):
            raise UsageError(
                f"privacy.secure_aggregation.{given}={getattr(keys, given)!r}: needs {missing} too; "
                "fedddp keygen makes both"
            )
    try:
        if keys.roster:
            _check_roster(Roster.load(Path(keys.roster)), identity_of(keys.key, place.rank), keys, place)
    except IdentityError as error:
        raise UsageError(f"privacy.secure_aggregation: {error}") from None


def _check_roster(roster: Roster, identity: Identity, keys: SecureAggregation, place: Place) -> None:
    if len(roster.keys) != place.world_size:
        raise UsageError(
            f"privacy.secure_aggregation.roster={keys.roster!r}: names {len(roster.keys)} parties, but "
            f"{place.world_size} ranks run; give the roster of these ranks"
        )
    if roster.keys[place.rank] != identity.public:
        raise UsageError(
            f"privacy.secure_aggregation.key={keys.key!r}: is not the key that the roster names for rank {place.rank}; "
            "give this rank's own ({rank} in the path stands for the rank)"
        )


def _with_noise(config: Config, sizes: Tensor) -> Config:
    """Sigma for ``run.rounds`` rounds within the target, where it is not given."""
    keys, rounds = config.privacy, config.run.rounds
    if keys.level == "none" or keys.noise_multiplier is not None:
        return config
    target, delta, population = keys.target_epsilon, keys.delta, config.data.partition.num_clients
    assert target is not None  # refused otherwise
    rate, steps = torch.tensor([cohort_size(config) / population], dtype=torch.float64), torch.tensor([rounds])
    if keys.level == "example":
        rate, steps = example_level_work(config, sizes)
        steps = steps * _participations(config)
    try:
        sigma = calibrate_worst(target, rate.tolist(), steps.tolist(), delta, keys.accountant)
    except ValueError as error:
        raise UsageError(f"privacy.target_epsilon={target:g}: {error}") from None
    return config.model_copy(update={"privacy": keys.model_copy(update={"noise_multiplier": sigma})})


def _participations(config: Config) -> Tensor:
    """In how many of the run's rounds each client will be drawn, [N]."""
    population, rounds = config.data.partition.num_clients, config.run.rounds
    sampler = UniformSampler(population, cohort_size(config), config.run.seed)
    if sampler.size == population:
        return torch.full((population,), rounds)
    counts = torch.zeros(population, dtype=torch.long)
    for t in range(rounds):
        counts[list(sampler.cohort(t).ids)] += 1
    return counts


def _check_ring(config: Config, place: Place, sizes: Tensor) -> None:
    """Whether the largest sum fits into the ring of integers, and every rank's share of the noise fills it."""
    keys, follow = config.privacy, None
    room = keys.secure_aggregation.bound, heaviest(sizes, cohort_size(config)), 0.0
    fixed = keys.level == "client" and not keys.adaptive_clip.enabled
    limit = f"clip={keys.clip:g}" if fixed else f"secure_aggregation.bound={room[0]:g}"
    try:
        if keys.level == "client":
            follow = following(config, place.world_size)
            room = client_ring(config, follow)
        elif not keys.secure_aggregation.enabled:
            return
        f = _fraction_bits(config, room)
    except ValueError as error:
        raise UsageError(f"privacy.{limit}: {error}") from None
    if keys.level == "client":
        _check_clip(config, place.world_size, follow, f)


def _check_clip(config: Config, ranks: int, follow: AdaptiveClip | None, f: int) -> None:
    """Whether the clip, which an adaptive one starts at, is one that may be, with noise enough for ``f`` bits."""
    keys, sigma = config.privacy, config.privacy.noise_multiplier or 0.0
    if follow and keys.clip > follow.largest:
        raise UsageError(
            f"privacy.clip={keys.clip:g}: an adaptive clip may be {follow.largest:g} at most, which is "
            f"privacy.secure_aggregation.bound; raise the bound to {keys.clip:g} or more, or start with a smaller clip"
        )
    share = sigma * keys.clip * 2.0**f / math.sqrt(ranks)
    if sigma and share < LEAST_SHARE:
        raise UsageError(
            f"privacy.noise_multiplier={sigma:g}: a rank's share of the noise is {share:.2g} units of the ring, too "
            "few for its sum to be as good as one draw; use more noise, 64 bits, or fewer ranks"
        )
    if follow and keys.clip < follow.smallest:
        raise UsageError(
            f"privacy.clip={keys.clip:g}: an adaptive clip may be {follow.smallest:g} at least, for a privacy."
            f"secure_aggregation.bound of {follow.largest:g}; lower the bound, or start with a larger clip"
        )


def _fraction_bits(config: Config, room: tuple[float, float, float]) -> int:
    bound, weight, noise = room
    return fraction_bits(bound, weight, config.privacy.secure_aggregation.bits, noise)
