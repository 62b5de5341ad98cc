"""Resolve a configuration: decide what depends on the ranks, the machine and other keys, before any data are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..checkpoints.run_folder import check_name
from ..comm import Place
from ..config import Config, UsageError, build, chosen, to_dict
from ..data import DATASETS, Partitioner, Parts
from ..evaluation.server import local_cores
from ..optim import CONSTANT, LearningRate, scaled
from .checks import delivery
from .cohorts import check_clients_mean, drawn
from .robustness import robust


def resolve(config: Config, place: Place) -> Config:
    """Fill in what depends on the ranks and on other keys, and check what needs no data. Raises UsageError."""
    partition, parts = config.data.partition, parts_of(config)
    if parts:
        partition = _as_divided(config, parts)
    try:
        partition = dataclasses.replace(partition, num_clients=partition.population(place.world_size))
    except ValueError as error:
        raise UsageError(str(error)) from None
    population, cohort = partition.num_clients, config.cohort
    if cohort.size is not None and cohort.size > population:
        there = f"there are only {population} clients" if population > 1 else "there is only one client"
        raise UsageError(
            f"cohort.size={cohort.size}: {there}; ask for at most {population}, or raise data.partition.num_clients"
        )
    _check_personal(config)
    check_clients_mean(config)
    execution = config.client.execution
    if config.aggregation.sum == "exact":  # a product's last bits depend on who shares it
        if execution.width > 1:
            raise UsageError(
                f"client.execution.width={execution.width}: aggregation.sum=exact promises the same bits for any "
                "number of ranks, which only clients trained one by one have; use width 1, or aggregation.sum=fast"
            )
        execution = execution.model_copy(update={"width": 1})
    reason = config.algorithm.unfit(config.client.optimizer, config.privacy.level, delivery(config))
    if reason:
        raise UsageError(f"{chosen(config, 'algorithm')}: {reason}")
    client = config.client.model_copy(update={"execution": execution, "schedule": _schedule(config)})
    threads = config.run.threads or (
        1 if config.aggregation.sum == "exact" else max(1, local_cores() // place.local_world_size)
    )
    table = to_dict(config)
    name = config.run.name or "-".join(table[section]["name"] for section in ("algorithm", "data", "model"))
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    run = config.run.model_copy(update={"name": name, "threads": threads})
    placement = config.data.placement
    if placement == "auto":
        placement = "shared" if population > place.world_size and not parts else "home"
    data = config.data.model_copy(update={"partition": partition, "placement": placement})
    config = drawn(config.model_copy(update={"run": run, "data": data, "client": client}))
    return robust(config)


def _schedule(config: Config) -> LearningRate:
    """The learning rate over this run's rounds. Raises UsageError for an optimizer that has none."""
    try:
        schedule = config.client.schedule.over(config.run.rounds)
        scaled(config.client.optimizer, 1.0 if schedule == CONSTANT else 0.5)  # whether it can be
    except ValueError as error:
        raise UsageError(f"client.schedule: {error}") from None
    return schedule


def _check_personal(config: Config) -> None:
    """Whether clients have something to score their models on, and may tell the result."""
    every, privacy = config.evaluate.personal_every, config.privacy
    if not every:
        return
    if not config.evaluate.holdout:
        raise UsageError(
            f"evaluate.personal_every={every}: clients have no examples apart from those they train on; "
            "set evaluate.holdout=0.2, or personal_every=0"
        )
    hiding = f"privacy.level={privacy.level}" if privacy.level != "none" else "privacy.secure_aggregation"
    if privacy.level != "none" or privacy.secure_aggregation.enabled:
        raise UsageError(
            f"evaluate.personal_every={every}: tells the accuracy of each client, exactly, which {hiding} is there to "
            "prevent; use personal_every=0"
        )


def parts_of(config: Config) -> Parts | None:
    """The loader of ``data.name`` if that is of data that lie divided."""
    loader = DATASETS.get(config.data.name)
    return loader if isinstance(loader, Parts) else None


def _as_divided(config: Config, parts: Parts) -> Partitioner:
    """The partition that the data were divided by. Raises UsageError where the configuration wants something else."""
    data = config.data
    if data.args:
        raise UsageError(f"data.args={data.args!r}: {data.name} takes none")
    if data.placement == "shared":
        raise UsageError(
            f"data.placement='shared': with data.name={data.name} a rank has its own clients' examples and no others; "
            "use home, or train on the whole dataset"
        )
    try:
        public = parts.public(Path(data.root))
    except ValueError as error:
        raise UsageError(str(error)) from None
    made = build({"data": {"partition": public.partition}}).data.partition
    asked = dataclasses.replace(data.partition, num_clients=data.partition.num_clients or made.num_clients)
    if asked not in (made, dataclasses.replace(Config().data.partition, num_clients=made.num_clients)):
        raise UsageError(
            f"data.partition={data.partition}: {data.root} was divided as {made}; leave it out, or divide again"
        )
    return made
