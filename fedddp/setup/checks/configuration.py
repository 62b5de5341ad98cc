"""Checks that need the configuration alone."""

from __future__ import annotations

from typing import Any

from ...aggregation.compression import NoCompression
from ...config import ResolvedConfig, flatten, to_dict
from ...data import DATASETS, Parts
from ...sampling import Uniform
from ...types import Delivery
from .table import Check, Values


def name_of(config: ResolvedConfig, section: str) -> str:
    """Return the name that was chosen for a section, such as "krum" for ``aggregation.rule``."""
    return flatten(to_dict(config))[f"{section}.name"]


def innermost(algorithm: Any) -> Any:
    """Return the algorithm inside wrappers such as `Personal`."""
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return algorithm


def _clusters(c: ResolvedConfig) -> int:
    return getattr(innermost(c.algorithm), "clusters", 1)


def _unfit(c: ResolvedConfig) -> Values | None:
    why = c.algorithm.unfit(c.client.optimizer, c.privacy.level, c.delivery)
    return {"why": why} if why else None


def _needs_whole_updates(c: ResolvedConfig) -> bool:
    """Whether the algorithm cannot use uploads that are incomplete or that contain other rounds' updates."""
    ways: tuple[Delivery, ...] = ("lossy", "late")
    return any(c.algorithm.unfit(c.client.optimizer, c.privacy.level, way) for way in ways)


def _divided(c: ResolvedConfig) -> bool:
    return isinstance(DATASETS.get(c.data.name), Parts)


PARTICIPATION: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "work-twice",
        ("client.local_steps", "client.local_epochs"),
        lambda c: c.client.local_steps is not None and c.client.local_epochs != 1,
        "local_epochs and local_steps both set how much a client trains",
        "set one of them (the other is local_epochs=1, local_steps=off)",
    ),
    Check(
        "stragglers-none",
        ("client.drop_stragglers", "client.stragglers"),
        lambda c: c.client.drop_stragglers and not c.client.stragglers,
        "there are no stragglers to ignore",
        "set client.stragglers above 0",
    ),
    Check(
        "stragglers-full",
        ("client.stragglers", "client.local_epochs", "client.local_steps"),
        lambda c: (
            bool(c.client.stragglers)
            and not c.client.drop_stragglers
            and (c.client.local_steps or c.client.local_epochs) == 1
        ),
        "a straggler cannot train less than one epoch or step",
        "set local_epochs or local_steps above 1",
    ),
    Check(
        "cohort-twice",
        ("cohort.size", "cohort.fraction"),
        lambda c: c.cohort.size is not None and c.cohort.fraction is not None,
        "fraction and size both set how many clients take part",
        "set one of them (the other is =off)",
    ),
    Check(
        "cohort-size",
        ("cohort.size", "data.partition.num_clients"),
        lambda c: {"population": c.num_clients} if (c.cohort.size or 0) > c.num_clients else None,
        "exceeds the number of clients, which is {population}",
        "use at most {population}, or raise data.partition.num_clients",
    ),
    Check(
        "stragglers-client-level",
        ("client.drop_stragglers", "privacy.level"),
        lambda c: c.client.drop_stragglers and c.privacy.level == "client",
        "privacy.level=client divides by the expected number of clients, so dropped ones would shrink the mean",
        "use drop_stragglers=false",
    ),
    Check(
        "sampler-private",
        ("cohort.sampler.name", "privacy.level"),
        lambda c: {"level": c.privacy.level} if c.cohort.sampler != Uniform() and c.privacy.level != "none" else None,
        "privacy.level={level} accounts for clients that are drawn with equal probability",
        "use cohort.sampler.name=uniform",
    ),
    Check(
        "sampler-masked",
        ("cohort.sampler.name", "privacy.secure_aggregation.enabled"),
        lambda c: c.cohort.sampler.asks_losses and c.privacy.secure_aggregation.enabled,
        "each client reports its loss, which secure aggregation hides",
        "use cohort.sampler.name=uniform or size, or privacy.secure_aggregation.enabled=false",
    ),
    Check(
        "sampler-clusters",
        ("cohort.sampler.name", "algorithm.clusters"),
        lambda c: {"n": _clusters(c)} if c.cohort.sampler.asks_losses and _clusters(c) > 1 else None,
        "compares clients' losses of one model, and there are {n} clusters",
        "use cohort.sampler.name=uniform or size",
    ),
    Check(
        "sampler-weighting",
        ("algorithm.weighting", "cohort.sampler.name"),
        lambda c: c.cohort.sampler.by_size and getattr(innermost(c.algorithm), "weighting", None) == "examples",
        "the sampler draws clients in proportion to their examples, which would count twice",
        "use algorithm.weighting=uniform",
    ),
    Check(
        "parts-args",
        ("data.args", "data.name"),
        lambda c: _divided(c) and bool(c.data.args),
        "data that were divided by fedddp split take no arguments",
        "leave them out",
    ),
    Check(
        "parts-placement",
        ("data.placement", "data.name"),
        lambda c: _divided(c) and c.placement == "shared",
        "of data that were divided, a rank has its own clients' examples only",
        "use home, or train on the whole dataset",
    ),
)

EVALUATION: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "personal-holdout",
        ("evaluate.personal_every", "evaluate.holdout"),
        lambda c: bool(c.evaluate.personal_every) and not c.evaluate.holdout,
        "clients hold out no examples to be scored on",
        "set evaluate.holdout=0.2, or personal_every=0",
    ),
    Check(
        "personal-private",
        ("evaluate.personal_every", "privacy.level", "privacy.secure_aggregation.enabled"),
        lambda c: {"hides": c.hides} if c.evaluate.personal_every and c.hides else None,
        "reveals each client's exact accuracy, which {hides} is meant to prevent",
        "use personal_every=0",
    ),
    Check(
        "clients-mean-private",
        ("evaluate.clients_mean", "privacy.level", "privacy.secure_aggregation.enabled"),
        lambda c: {"hides": c.hides} if c.evaluate.clients_mean and c.hides else None,
        "sums clients' models in the clear, outside of what {hides} covers",
        "use clients_mean=false",
    ),
    Check(
        "clients-mean-clusters",
        ("evaluate.clients_mean", "algorithm.clusters"),
        lambda c: c.evaluate.clients_mean and _clusters(c) > 1,
        "clients of several clusters have no common model",
        "use clients_mean=false",
    ),
)


def _single(section: str, code: str, other: str, applies: Any, reason: str, remedy: str) -> Check[ResolvedConfig]:
    """A row on an aggregation rule or an attack (``section``) that reads single updates."""
    instead = "another attack" if section == "attack" else "rule mean"

    def found(c: ResolvedConfig) -> Values | None:
        reader = "attack" if c.aggregation.rule.streams else "aggregation.rule"
        return {"name": name_of(c, section)} if c.needs_single_updates and reader == section and applies(c) else None

    return Check(
        f"{section.rpartition('.')[2]}-{code}",
        (f"{section}.name", other),
        found,
        f"{{name}} needs single updates, and {reason}",
        f"use {instead}, or {remedy}",
    )


def _single_updates(section: str) -> tuple[Check[ResolvedConfig], ...]:
    return (
        _single(
            section,
            "compressed",
            "aggregation.compression.name",
            lambda c: not isinstance(c.aggregation.compression, NoCompression),
            "compressed updates are sent as sums",
            "aggregation.compression.name=none",
        ),
        _single(
            section,
            "masked",
            "privacy.secure_aggregation.enabled",
            lambda c: c.privacy.secure_aggregation.enabled,
            "secure aggregation hides them",
            "privacy.secure_aggregation.enabled=false",
        ),
        _single(
            section,
            "client-level",
            "privacy.level",
            lambda c: c.privacy.level == "client",
            "privacy.level=client adds its noise to their sum",
            "another privacy.level",
        ),
    )


AGGREGATION: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "exact-width",
        ("client.execution.width", "aggregation.sum"),
        lambda c: c.aggregation.sum == "exact" and c.client.execution.width > 1,
        "aggregation.sum=exact promises the same bits for any number of ranks, which only sequential training gives",
        "use width=1, or aggregation.sum=fast",
    ),
    Check(
        "algorithm-unfit",
        ("algorithm.name", "client.optimizer.name", "privacy.level", "aggregation.compression.name"),
        _unfit,
        "{why}",
    ),
    Check(
        "attack-count",
        ("attack.num_clients", "data.partition.num_clients"),
        lambda c: {"population": c.num_clients} if c.attack.num_clients > c.num_clients else None,
        "exceeds the number of clients, which is {population}",
        "use at most {population}",
    ),
    *_single_updates("aggregation.rule"),
    *_single_updates("attack"),
    Check(
        "rule-clients",
        ("aggregation.rule.name", "attack.num_clients", "cohort.size"),
        lambda c: (
            {"least": c.aggregation.rule.least, "needs": c.aggregation.rule.needs, "m": c.cohort_size}
            if c.cohort_size < c.aggregation.rule.least
            else None
        ),
        "needs {least} clients per round ({needs}), but a round has {m}",
        "lower aggregation.rule.num_byzantine (by default attack.num_clients), or let more clients take part",
    ),
    Check(
        "rule-momentum",
        ("aggregation.rule.momentum", "algorithm.name"),
        lambda c: (
            {"algorithm": name_of(c, "algorithm")}
            if c.aggregation.rule.client_momentum and _needs_whole_updates(c)
            else None
        ),
        "clients would upload means of several rounds, and algorithm.name='{algorithm}' needs each round's own update",
        "use momentum=0, or fedavg",
    ),
    Check(
        "rule-exact",
        ("aggregation.sum", "aggregation.rule.name"),
        lambda c: (
            {"rule": name_of(c, "aggregation.rule")}
            if c.aggregation.sum == "exact" and not c.aggregation.rule.bit_stable
            else None
        ),
        "promises the same bits for any number of ranks, but {rule} uses dot products that are summed over ranks",
        "use aggregation.sum=fast, or a coordinate-wise rule (median, trimmed_mean)",
    ),
)

CONFIGURATION = (*PARTICIPATION, *EVALUATION, *AGGREGATION)
"""Checks of a resolved configuration, in the order in which they are made."""
