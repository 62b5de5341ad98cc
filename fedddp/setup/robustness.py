"""Whether a rule of aggregation and Byzantine clients fit the rest of a configuration; who is Byzantine in a run."""

from __future__ import annotations

from ..aggregation.compression import NoCompression
from ..attacks import Adversary, NoAttack
from ..config import Config, UsageError, chosen, flatten, to_dict
from ..types import Delivery
from .checks import cohort_size


def adversary(config: Config) -> Adversary:
    """The Byzantine clients of a resolved configuration."""
    return Adversary.drawn(config.attack, config.data.partition.num_clients, config.run.seed)


def needs_single_updates(config: Config) -> bool:
    """Whether a running sum over clients is not enough."""
    return not config.aggregation.rule.streams or config.attack.omniscient


def told_of_attack(config: Config) -> list[str]:
    """What a run says of its Byzantine clients at start."""
    if config.attack == NoAttack():
        return []
    lines = [f"attack {_name(config, 'attack')}: {adversary(config)}"]
    if config.evaluate.personal_every:
        benign = config.data.partition.num_clients - config.attack.num_clients
        lines.append(f"personal accuracies are of the {benign} benign clients, those with two examples or more")
    return lines


def robust(config: Config) -> Config:
    """``config`` (resolved) with the number of Byzantine clients that its rule withstands, where it does not say.

    Raises UsageError, naming key and remedy, for what cannot be done.
    """
    population, attack = config.data.partition.num_clients, config.attack
    rule = config.aggregation.rule.facing(max(1, attack.num_clients))
    config = config.model_copy(update={"aggregation": config.aggregation.model_copy(update={"rule": rule})})
    if attack.num_clients > population:
        raise UsageError(
            f"attack.num_clients={attack.num_clients}: there are only {population} clients; at most all are Byzantine"
        )
    if needs_single_updates(config):
        _check_visible(config)
    _check_rule(config)
    return config


def _check_visible(config: Config) -> None:
    """Single updates must be there to be seen."""
    section, remedy = ("attack", "another attack") if config.aggregation.rule.streams else ("aggregation.rule", "mean")
    name = _name(config, section)
    told = f"{section}.name={name}: {name} needs single updates"
    if not isinstance(config.aggregation.compression, NoCompression):
        compression = _name(config, "aggregation.compression")
        raise UsageError(
            f"{told}; aggregation.compression.name={compression} sends sums: use {remedy}, or compression none"
        )
    if config.privacy.secure_aggregation.enabled:
        raise UsageError(
            f"{told}; secure aggregation hides them: use {remedy}, or privacy.secure_aggregation.enabled=false"
        )
    if config.privacy.level == "client":
        raise UsageError(
            f"{told}; privacy.level=client adds its noise to their sum: use {remedy}, or another privacy.level"
        )


def _check_rule(config: Config) -> None:
    rule, m = config.aggregation.rule, cohort_size(config)
    name = _name(config, "aggregation.rule")
    if m < rule.least:
        raise UsageError(
            f"aggregation.rule.name={name}: needs {rule.least} clients a round ({rule.needs}), there are {m}; set a "
            "lower aggregation.rule.num_byzantine (by default attack.num_clients), or let more clients take part"
        )
    if rule.client_momentum and _rests_on_whole_updates(config):
        raise UsageError(
            f"aggregation.rule.momentum={rule.client_momentum:g}: clients would upload means of several rounds, "
            f"and {chosen(config, 'algorithm')} rests on each round's own; use momentum=0, or fedavg"
        )
    if config.aggregation.sum == "exact" and not rule.bit_stable:
        raise UsageError(
            f"aggregation.sum=exact: promises the same bits for any number of ranks, but {name} rests on dot products "
            "that are summed over ranks; use aggregation.sum=fast, or a coordinate-wise rule (median, trimmed_mean)"
        )


def _rests_on_whole_updates(config: Config) -> bool:
    """Whether the algorithm cannot do with uploads that are incomplete, or that hold what belongs to other rounds."""
    ways: tuple[Delivery, ...] = ("lossy", "late")
    optimizer, level = config.client.optimizer, config.privacy.level
    return any(config.algorithm.unfit(optimizer, level, way) for way in ways)


def _name(config: Config, section: str) -> str:
    return flatten(to_dict(config))[f"{section}.name"]
