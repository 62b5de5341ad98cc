"""Checks of privacy: settings that would show a privacy figure without a guarantee, and a ring without room."""

import math
from pathlib import Path

import torch

from ...algorithms import QuantileClip
from ...clients import mixing_layers
from ...config.schema import PrivacySection
from ...privacy import check_installed
from ...secure import LEAST_PARTIES, Roster, identity_of
from ..noise import LEAST_NOISE, adaptive_clip, client_ring, heaviest, ring_fraction_bits
from .data import Facts
from .table import Check, Values, failure, level_of


def _idle(key: str) -> Check[Facts]:
    """A row on a key that promises privacy where no level of it is on."""

    def found(f: Facts) -> bool:
        keys = f.config.privacy
        value = keys.adaptive_clip.enabled if key == "adaptive_clip.enabled" else getattr(keys, key)
        default = {"clip": PrivacySection().clip, "adaptive_clip.enabled": False}.get(key)
        return not level_of(f.config).unit and value != default

    return Check(
        f"idle-{key.partition('.')[0].replace('_', '-')}",
        (f"privacy.{key}", "privacy.level"),
        found,
        "has no effect with privacy.level=none",
        "use privacy.level=example or client",
    )


def _uncounted(key: str) -> Check[Facts]:
    """A row on a key by which clients train for another number of steps than the accountant counts."""
    return Check(
        f"example-level-{key.replace('_', '-')}",
        (f"client.{key}", "privacy.level"),
        lambda f: level_of(f.config).clips_gradients and bool(getattr(f.config.client, key)),
        "the accountant of privacy.level=example counts the steps of client.local_epochs for every client",
        f"leave {key} off",
    )


def _delta(f: Facts) -> Values | None:
    level = level_of(f.config)
    units = f.config.num_clients if level.clips_updates else int(f.sizes.sum())
    if not level.unit or f.config.privacy.delta * units < 1:
        return None
    return {"units": f"{units} {level.unit}s", "n": units, "limit": 1 / units}


def _mixing(f: Facts) -> Values | None:
    layers = mixing_layers(f.module) if level_of(f.config).clips_gradients else []
    return {"layers": ", ".join(layers)} if layers else None


def _accountant(f: Facts) -> Values | None:
    return failure(check_installed) if level_of(f.config).unit and f.config.privacy.noise_multiplier != 0 else None


PRIVACY: tuple[Check[Facts], ...] = (
    *map(_idle, ("noise_multiplier", "target_epsilon", "clip", "adaptive_clip.enabled")),
    Check(
        "noise-missing",
        ("privacy.level", "privacy.noise_multiplier", "privacy.target_epsilon"),
        lambda f: (
            bool(level_of(f.config).unit)
            and f.config.privacy.noise_multiplier is None
            and f.config.privacy.target_epsilon is None
        ),
        "there is no noise without privacy.noise_multiplier or privacy.target_epsilon",
        "set one of them",
    ),
    Check(
        "epsilon-infinite",
        ("privacy.target_epsilon", "privacy.noise_multiplier"),
        lambda f: (
            bool(level_of(f.config).unit)
            and f.config.privacy.noise_multiplier == 0
            and f.config.privacy.target_epsilon is not None
        ),
        "with privacy.noise_multiplier=0 epsilon is infinite after one round",
        "leave out the noise multiplier, so that it is found for the target",
    ),
    Check(
        "delta-large",
        ("privacy.delta", "privacy.level"),
        _delta,
        "delta must be below 1 / {units}, or publishing one of them at random would count as private",
        "use less than 1/{n} = {limit:.1g}",
    ),
    Check(
        "client-level-weighting",
        ("algorithm.weighting", "privacy.level"),
        lambda f: level_of(f.config).clips_updates and f.config.algorithm.traits.weighting in ("examples", "tokens"),
        "a client's weight reveals how many examples it has, and a large one exceeds what the noise covers",
        "use uniform",
    ),
    Check(
        "example-level-mixing",
        ("model.name", "privacy.level"),
        _mixing,
        "{layers} lets an example change the gradients of others, so clipping bounds nothing",
        "use GroupNorm or LayerNorm",
    ),
    *map(_uncounted, ("local_steps", "stragglers")),
    Check(
        "example-level-overlap",
        ("data.partition.num_clients", "data.partition.name", "privacy.level"),
        lambda f: level_of(f.config).clips_gradients and f.overlap,
        "clients have examples in common, each of which costs what all its owners spend; epsilon is that of one owner",
        "use fewer clients, or a partition that gives every example one owner",
    ),
    Check(
        "example-level-adaptive-clip",
        ("privacy.adaptive_clip.enabled", "privacy.level"),
        lambda f: level_of(f.config).clips_gradients and f.config.privacy.adaptive_clip.enabled,
        "clips the updates of clients, not the gradients of examples",
        "use privacy.level=client, or a fixed clip",
    ),
    Check("accountant-missing", ("privacy.level",), _accountant, "epsilon cannot be computed: {why}"),
)


def _masked_key(key: str) -> tuple[Check[Facts], ...]:
    """Rows on ``roster`` and ``key`` of secure aggregation, of which neither works alone."""
    front, other = f"privacy.secure_aggregation.{key}", "key" if key == "roster" else "roster"

    def given(f: Facts, enabled: bool) -> bool:
        keys = f.config.privacy.secure_aggregation
        return keys.enabled == enabled and bool(getattr(keys, key))

    return (
        Check(
            f"{key}-idle",
            (front, "privacy.secure_aggregation.enabled"),
            lambda f: given(f, enabled=False),
            "has no effect, updates would be sent unmasked",
            f"add privacy.secure_aggregation.enabled=true, or leave {key} out",
        ),
        Check(
            f"{key}-alone",
            (front, f"privacy.secure_aggregation.{other}"),
            lambda f: given(f, enabled=True) and not getattr(f.config.privacy.secure_aggregation, other),
            f"needs {other} too",
            "fedddp keygen makes both",
        ),
    )


def _files(f: Facts) -> tuple[Roster, bytes] | None:
    """Return the roster and this rank's public key, if they are given. Raises IdentityError."""
    keys = f.config.privacy.secure_aggregation
    if not (keys.enabled and keys.roster):
        return None
    return Roster.load(Path(keys.roster)), identity_of(keys.key, f.place.rank).public


def _roster_size(f: Facts) -> Values | None:
    files = _files(f)
    if files is None or len(files[0].keys) == f.place.world_size:
        return None
    return {"parties": len(files[0].keys), "ranks": f.place.world_size}


def _foreign_key(f: Facts) -> Values | None:
    files = _files(f)
    return {"n": f.place.rank} if files is not None and files[0].keys[f.place.rank] != files[1] else None


def _few_clients(f: Facts) -> Values | None:
    keys, clients = f.config.privacy.secure_aggregation, min(f.config.cohort_size, int((f.sizes > 0).sum()))
    return {"clients": clients} if keys.enabled and clients < keys.min_clients else None


SECURE: tuple[Check[Facts], ...] = (
    *_masked_key("roster"),
    *_masked_key("key"),
    Check(
        "parties-few",
        ("privacy.secure_aggregation.enabled",),
        lambda f: (
            {"least": LEAST_PARTIES, "ranks": f.place.world_size}
            if f.config.privacy.secure_aggregation.enabled and f.place.world_size < LEAST_PARTIES
            else None
        ),
        "needs {least} ranks or more, not {ranks}: of two, each learns the other's update from the sum",
        "start more with torchrun --nproc_per_node",
    ),
    Check(
        "min-clients-unreachable",
        ("privacy.secure_aggregation.min_clients", "cohort.size", "data.partition.num_clients"),
        _few_clients,
        "no round can have so many: {clients} client(s) take part in one",
        "sample more clients per round, or set it to {clients}: the sum of few clients reveals much of each",
    ),
    Check(
        "identity-unreadable",
        ("privacy.secure_aggregation",),
        lambda f: failure(lambda: _files(f)),
        "the roster or this rank's key cannot be used: {why}",
    ),
    Check(
        "roster-size",
        ("privacy.secure_aggregation.roster",),
        _roster_size,
        "names {parties} parties, but {ranks} ranks run",
        "give the roster of these ranks",
    ),
    Check(
        "key-foreign",
        ("privacy.secure_aggregation.key", "privacy.secure_aggregation.roster"),
        _foreign_key,
        "is not the key that the roster names for rank {n}",
        "give this rank's own ({{rank}} in the path stands for the rank)",
    ),
)


def _no_room(key: str) -> Check[Facts]:
    """A row on the ring of integers, whose largest entry follows from ``key``."""

    def found(f: Facts) -> Values | None:
        keys = f.config.privacy
        level = level_of(f.config).clips_updates
        limit = "clip" if level and not keys.adaptive_clip.enabled else "secure_aggregation.bound"
        if limit != key or not (level or keys.secure_aggregation.enabled):
            return None
        ring = keys.secure_aggregation.bound, heaviest(f.sizes, f.config.cohort_size), 0.0

        def fit() -> int:
            clip = adaptive_clip(f.config, f.place.world_size) if level else None
            return ring_fraction_bits(f.config, client_ring(f.config, clip) if level else ring)

        return failure(fit)

    keys = (f"privacy.{key}", "privacy.secure_aggregation.bits", "cohort.size")
    return Check(f"ring-{key.rpartition('.')[2]}", keys, found, "the ring of integers has no room for it: {why}")


def _clip_high(f: Facts) -> Values | None:
    clip = _adaptive(f)
    return (
        {"largest": clip.largest, "clip": f.config.privacy.clip}
        if clip and f.config.privacy.clip > clip.largest
        else None
    )


def _clip_low(f: Facts) -> Values | None:
    clip = _adaptive(f)
    if clip is None or f.config.privacy.clip >= clip.smallest:
        return None
    return {"smallest": clip.smallest, "bound": clip.largest}


def _adaptive(f: Facts) -> QuantileClip | None:
    return adaptive_clip(f.config, f.place.world_size) if level_of(f.config).clips_updates else None


def _little_noise(f: Facts) -> Values | None:
    if not level_of(f.config).clips_updates or not f.config.noise_multiplier:
        return None
    bits = ring_fraction_bits(f.config, client_ring(f.config, _adaptive(f)))
    std = f.config.noise_multiplier * f.config.privacy.clip * 2.0**bits / math.sqrt(f.place.world_size)
    return {"std": std} if std < LEAST_NOISE else None


RING: tuple[Check[Facts], ...] = (
    _no_room("clip"),
    _no_room("secure_aggregation.bound"),
    Check(
        "clip-above-bound",
        ("privacy.clip", "privacy.secure_aggregation.bound"),
        _clip_high,
        "an adaptive clip may be {largest:g} at most, which is privacy.secure_aggregation.bound",
        "raise the bound to {clip:g} or more, or start with a smaller clip",
    ),
    Check(
        "noise-below-grid",
        ("privacy.noise_multiplier", "privacy.secure_aggregation.bits"),
        _little_noise,
        "per-rank noise is too small for the fixed-point grid: its standard deviation is {std:.2g} steps",
        "use more noise, 64 bits, or fewer ranks",
    ),
    Check(
        "clip-below-grid",
        ("privacy.clip", "privacy.secure_aggregation.bound"),
        _clip_low,
        "an adaptive clip may be {smallest:g} at least, for a privacy.secure_aggregation.bound of {bound:g}",
        "lower the bound, or start with a larger clip",
    ),
)
"""Checks of the ring, made once the noise multiplier is known."""


def _remembered(f: Facts) -> Values | None:
    """Return what hides the clients from the readers of the run folder, if their state would lie there."""
    c = f.config
    if c.checkpoint.clients_dir or not (c.privacy.secure_aggregation.enabled or level_of(c).clips_updates):
        return None
    start = c.trained_by.init_server(torch.zeros(f.spec.dim), f.spec)
    return {"hides": c.hides} if c.trained_by.init_client(start) else None


REMEMBERED: tuple[Check[Facts], ...] = (
    Check(
        "clients-remember",
        ("checkpoint.clients_dir", "privacy.level", "privacy.secure_aggregation.enabled"),
        _remembered,
        "checkpoints would hold in the run folder what each client remembers, which tells its update; {hides} keeps "
        "that from the other ranks",
        "name a folder of each rank's own, such as ~/fedddp-clients",
    ),
)
