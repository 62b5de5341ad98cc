"""Resolve a configuration: decide what depends on the ranks, the machine and other keys, before any data are read."""

import dataclasses
from pathlib import Path

from ..checkpoints.run_folder import check_name
from ..comm.world import Place, local_cores
from ..config import Config, ResolvedConfig, build, to_dict
from ..data import DATASETS, Partitioner, Parts
from ..errors import UsageError, named
from ..optim import CONSTANT, LearningRate, in_steps, scaled
from ..tasks import natural_loss
from ..tasks.losses import Natural
from .checks import CONFIGURATION, refuse


def resolve(config: Config, place: Place) -> ResolvedConfig:
    """Fill in what depends on the ranks and on other keys, and check all that needs no data.

    Args:
        config: the configuration as it was given.
        place: this process's rank and the number of ranks.

    Raises:
        UsageError: two keys exclude each other; see `fedddp.setup.checks`.
    """
    data, client, aggregation = config.data, config.client, config.aggregation
    parts = parts_of(config)
    with named():
        partition = _as_divided(config, parts) if parts else data.partition
        partition = dataclasses.replace(partition, num_clients=partition.population(place.world_size))
        table = to_dict(config)
        names = (table[section]["name"].rpartition("/")[2] for section in ("algorithm", "data", "model"))  # hf:A/B
        name = config.run.name or "-".join(names)
        check_name(name)
    exact, placement, execution = aggregation.sum == "exact", data.placement, client.execution
    if placement == "auto":
        placement = "shared" if partition.num_clients > place.world_size and not parts else "home"
    if exact and execution.width == 0:  # the last bits of a product depend on how many clients are multiplied at once
        execution = execution.model_copy(update={"width": 1})
    cores = 1 if exact else max(1, local_cores() // place.local_world_size)
    rule = aggregation.rule.facing(max(1, config.attack.num_clients))
    algorithm = config.algorithm.with_plain_mean() if config.cohort.sampler.plain_means else config.algorithm
    filled = {
        "run": config.run.model_copy(update={"name": name, "threads": config.run.threads or cores}),
        "data": data.model_copy(update={"partition": partition, "placement": placement}),
        "client": client.model_copy(update={"execution": execution, "schedule": _schedule(config)}),
        "aggregation": aggregation.model_copy(update={"rule": rule}),
        "algorithm": algorithm,
        "loss": natural_loss(config.task) if config.loss == Natural() else config.loss,
    }
    resolved = ResolvedConfig.of(config.model_copy(update=filled))
    refuse(CONFIGURATION, resolved, resolved)
    return resolved


def parts_of(config: Config) -> Parts | None:
    """Return the loader of ``data.name`` if its data were divided by ``fedddp split``, else None."""
    loader = DATASETS.get(config.data.name)
    return loader if isinstance(loader, Parts) else None


def _schedule(config: Config) -> LearningRate:
    """Return the learning rate over this run's rounds or steps. Raises UsageError for an optimizer that has none."""
    schedule = config.client.schedule
    steps = (config.client.local_steps or 1) if in_steps(schedule) else 1
    try:
        schedule = schedule.over(config.run.rounds * steps)
        scaled(config.client.optimizer, 1.0 if schedule == CONSTANT else 0.5)  # raises if it cannot be scaled
    except ValueError as error:
        raise UsageError(f"client.schedule: {error}", code="schedule") from None
    return schedule


def _as_divided(config: Config, parts: Parts) -> Partitioner:
    """Return the partition by which the data were divided. Raises ValueError if the configuration asks for another."""
    data = config.data
    made = build({"data": {"partition": parts.public(Path(data.root)).partition}}).data.partition
    asked = dataclasses.replace(data.partition, num_clients=data.partition.num_clients or made.num_clients)
    if asked not in (made, dataclasses.replace(Config().data.partition, num_clients=made.num_clients)):
        raise UsageError(
            f"data.partition={data.partition}: {data.root} was divided as {made}; leave it out, or divide again",
            code="parts-partition",
        )
    return made
