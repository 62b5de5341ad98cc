"""Checks that need the configuration alone."""

from typing import Any

from ...aggregation.compression import NoCompression
from ...config import ResolvedConfig, flatten, to_dict
from .continued import CONTINUED
from .mechanism import MECHANISM
from .table import Check, Values, level_of


def name_of(config: ResolvedConfig, section: str) -> str:
    """Return the name that was chosen for a section, such as "krum" for ``aggregation.rule``."""
    return flatten(to_dict(config))[f"{section}.name"]


def compressed(c: ResolvedConfig) -> bool:
    """Return whether updates are compressed."""
    return not isinstance(c.aggregation.compression, NoCompression)


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
        "target-twice",
        ("evaluate.target", "evaluate.target_accuracy"),
        lambda c: c.evaluate.target is not None and c.evaluate.target_accuracy is not None,
        "target and target_accuracy both set when the run stops",
        "set one of them (the other is =off)",
    ),
    Check(
        "cohort-twice",
        ("cohort.size", "cohort.fraction"),
        lambda c: c.cohort.size is not None and c.cohort.fraction is not None,
        "fraction and size both set how many clients take part",
        "set one of them (the other is =off)",
    ),
    Check(
        "over-selection",
        ("cohort.over_selection", "cohort.deadline"),
        lambda c: c.cohort.over_selection > 0 and c.cohort.deadline is None,
        "more clients are drawn for those that miss a deadline, and there is none",
        "set cohort.deadline, or raise cohort.size",
    ),
    Check(
        "deadline-private",
        ("cohort.deadline", "privacy.level"),
        lambda c: c.cohort.deadline is not None and c.privacy.level != "none",
        "who is late depends on how long clients train, which no noise covers",
        "use privacy.level=none or leave out cohort.deadline",
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
        lambda c: c.client.drop_stragglers and level_of(c).clips_updates,
        "privacy.level=client divides by the expected number of clients, so dropped ones would shrink the mean",
        "use drop_stragglers=false",
    ),
    Check(
        "sampler-private",
        ("cohort.sampler.name", "privacy.level"),
        lambda c: {"level": level_of(c).unit} if level_of(c).unit and not c.cohort.sampler.accountable else None,
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
        lambda c: (
            {"n": c.algorithm.traits.clusters}
            if c.cohort.sampler.asks_losses and c.algorithm.traits.clusters > 1
            else None
        ),
        "compares clients' losses of one model, and there are {n} clusters",
        "use cohort.sampler.name=uniform or size",
    ),
    Check(
        "sampler-weighting",
        ("algorithm.weighting", "cohort.sampler.name"),
        lambda c: c.cohort.sampler.by_size and c.algorithm.traits.weighting in ("examples", "tokens"),
        "the sampler draws clients in proportion to their examples, which would count twice",
        "use algorithm.weighting=uniform",
    ),
    Check(
        "parts-args",
        ("data.args", "data.name"),
        lambda c: c.divided and bool(c.data.args),
        "data that were divided by fedddp split take no arguments",
        "leave them out",
    ),
    Check(
        "parts-placement",
        ("data.placement", "data.name"),
        lambda c: c.divided and c.placement == "shared",
        "of data that were divided, a rank has its own clients' examples only",
        "use home, or train on the whole dataset",
    ),
)


def _equal_work(code: str, other: str, applies: Any, reason: str, remedy: str) -> Check[ResolvedConfig]:
    """A row on ``privacy.equal_work`` where it would hide nothing."""
    keys = ("privacy.equal_work", other)
    return Check(f"equal-work-{code}", keys, lambda c: c.privacy.equal_work and applies(c), reason, remedy)


EQUAL_WORK: tuple[Check[ResolvedConfig], ...] = (
    _equal_work(
        "level",
        "privacy.level",
        lambda c: not level_of(c).hides_cohort,
        "hides how many clients are drawn, which only privacy.level=client keeps secret",
        "leave it off",
    ),
    _equal_work(
        "shared",
        "data.placement",
        lambda c: c.placement == "shared",
        "with data.placement=shared all ranks draw the cohort and know it",
        "use data.placement=home",
    ),
    _equal_work(
        "stragglers",
        "client.stragglers",
        lambda c: bool(c.client.stragglers),
        "stragglers differ in work, so time would tell who was drawn",
        "use client.stragglers=0",
    ),
    _equal_work(
        "width",
        "client.execution.width",
        lambda c: c.client.execution.width != 1,
        "how long clients take that are trained together depends on how many they are",
        "use client.execution.width=1",
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
        "contribution-private",
        ("evaluate.contribution", "privacy.level", "privacy.secure_aggregation.enabled"),
        lambda c: {"hides": c.hides} if c.evaluate.contribution != "off" and c.hides else None,
        "reads the update of each client, which {hides} is meant to prevent",
        "use contribution=off",
    ),
    Check(
        "contribution-mean",
        ("evaluate.contribution", "aggregation.rule.name", "aggregation.compression.name"),
        lambda c: c.evaluate.contribution != "off" and (c.needs_single_updates or compressed(c)),
        "averages the updates of a round anew, and here their mean is not what the server takes",
        "use aggregation.rule=mean without compression, or contribution=off",
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
        lambda c: c.evaluate.clients_mean and c.algorithm.traits.clusters > 1,
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
            compressed,
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
            lambda c: level_of(c).clips_updates,
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
        "algorithm-optimizer",
        ("algorithm.name", "client.optimizer.name"),
        lambda c: {"why": why} if (why := c.algorithm.unfit(c.client.optimizer)) else None,
        "does not work with this client optimizer: {why}",
    ),
    Check(
        "algorithm-example-level",
        ("algorithm.name", "privacy.level"),
        lambda c: c.algorithm.traits.trainings > 1 and level_of(c).clips_gradients,
        "a client trains more than once a round, and privacy.level=example accounts for one training",
        "use privacy.level=client, or an algorithm that trains once, such as fedavg or scaffold with option=2",
    ),
    Check(
        "contrast-example-level",
        ("algorithm.name", "privacy.level"),
        lambda c: c.algorithm.traits.contrasts and level_of(c).clips_gradients,
        "gradients of a loss that compares features are not clipped by example",
        "use privacy.level=client, or fedavg",
    ),
    Check(
        "algorithm-losses",
        ("algorithm.name", "privacy.level"),
        lambda c: {"level": level_of(c).unit} if c.algorithm.traits.reads_losses and level_of(c).unit else None,
        "what a client uploads depends on its loss, which privacy.level={level} does not cover",
        "use fedavg",
    ),
    Check(
        "algorithm-client-level",
        ("algorithm.name", "privacy.level"),
        lambda c: level_of(c).clips_updates and not c.algorithm.traits.clippable,
        "clip and noise of privacy.level=client change what its server needs to be exact",
        "use fedavg",
    ),
    Check(
        "algorithm-lossy",
        ("algorithm.name", "aggregation.compression.name", "privacy.secure_aggregation.bits"),
        lambda c: c.delivery == "lossy" and "lossy" not in c.algorithm.traits.deliveries,
        "uploads lose a part for good, by which the server's state would differ from what the clients remember",
        "use aggregation.compression none, top_k or power_sgd, and privacy.secure_aggregation.bits=64",
    ),
    Check(
        "algorithm-late",
        ("algorithm.name", "aggregation.compression.name"),
        lambda c: c.delivery == "late" and "late" not in c.algorithm.traits.deliveries,
        "a part of each upload arrives in a later round, when the client may have left the model that it belongs to",
        "use aggregation.compression int8, random_k or none",
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
            if c.aggregation.rule.client_momentum and not {"lossy", "late"} <= c.algorithm.traits.deliveries
            else None
        ),
        "clients would upload means of several rounds, and algorithm.name='{algorithm}' needs each round's own update",
        "use momentum=0, or fedavg",
    ),
    Check(
        "rule-fragments",
        ("aggregation.rule.name", "algorithm.fragments"),
        lambda c: c.aggregation.rule.remembers and c.algorithm.traits.fragments > 1,
        "centers on the mean of the round before, which is of another fragment of the model",
        "use another rule, such as median, or algorithm.fragments=1",
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

CONFIGURATION = (*PARTICIPATION, *EQUAL_WORK, *EVALUATION, *AGGREGATION, *CONTINUED, *MECHANISM)
"""Checks of a resolved configuration, in the order in which they are made."""
