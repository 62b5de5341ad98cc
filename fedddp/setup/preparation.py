"""What one rank can find out alone: whether a configuration describes a run that is possible on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.run_folder import check_name
from ..clients import Trainer
from ..comm import Place
from ..config import Config, UsageError, build, chosen, flatten, to_dict
from ..data import DATASETS, ClientData, Dataset, Partition, Partitioner, Parts, load
from ..evaluation.server import local_cores
from ..flat import FlatSpec
from ..models.weights import start_signature
from ..optim import CONSTANT, LearningRate, scaled
from ..tasks import Task
from . import Prepared, check_dataset, check_task, laid_out, rehearse, task_of, two_examples
from .checks import check_compression, delivery, secured
from .cohorts import check_clients_mean, check_cohort, drawn
from .levels import LEVELS, trained_how
from .resume import found
from .robustness import adversary, robust
from .smallest_batch import check_sizes, smallest_batch

log = logging.getLogger("fedddp")

LOCAL = (  # may differ between machines
    "run.dir",
    "run.resume",
    "run.threads",
    "data.root",
    "data.partition.path",
    "model.weights",
    "privacy.secure_aggregation.roster",
    "privacy.secure_aggregation.key",
)


def resolve(config: Config, place: Place) -> Config:
    """Fill in what depends on the ranks and on other keys, and check what needs no data. Raises UsageError."""
    partition, parts = config.data.partition, _parts(config)
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


def prepare(config: Config, place: Place) -> Prepared:
    """Load the data, deal it out, build the model, find the run folder. Raises UsageError naming key and remedy."""
    return share(config, place, *load_data(config, place))


def share(config: Config, place: Place, dataset: Dataset, partition: Partition, task: Task | None = None) -> Prepared:
    """The same with a dataset and a partition at hand, for a task of one's own if it is given."""
    device = _device(config, place)
    torch.set_num_threads(config.run.threads)
    check_dataset(config, dataset)
    task = task_of(config, dataset, task)
    check_task(config, task)
    module, spec = laid_out(
        config, task, dataset, device, place.world_size if config.evaluate.where == "sharded" else 1
    )
    try:
        config.algorithm.for_model(spec)
        config.attack.probes(dataset.test, dataset.num_classes)  # whether it can be done at all
        used, held = _held_out(config, partition)
        dataset, used = adversary(config).poisoned(dataset, used)  # what is held out stays as it is
    except ValueError as error:
        raise UsageError(str(error)) from error
    smallest = smallest_batch(config, task, *two_examples(dataset, spec.dtype))
    sizes = torch.from_numpy(used.sizes).long()
    check_sizes(config, sizes, smallest, warn=place.rank == 0)
    check_cohort(config, sizes)
    config = secured(config, place, sizes, module, shared=partition.shares)
    check_compression(config, spec)
    shown = config.data.placement == "shared"  # every rank holds all of them
    placed = dataclasses.replace(dataset, train=dataset.train.to(device)) if shown else dataset
    data = _placed(config, place, placed, used, spec, device)
    how = trained_how(config, spec, device, smallest)
    rehearse(config, task, module, dataset, data.sizes, how)
    trainer = _trainer(config, task, dataset, data, how)
    first = place.rank == 0
    folder, saved = found(config, place, spec) if first else (None, None)
    return Prepared(
        config=config,
        place=place,
        device=device,
        data=data,
        held=_placed(config, place, placed, held, spec, device) if held else None,
        test=dataset.test,
        task=task,
        spec=spec,
        smallest_batch=smallest,
        trainer=trainer,
        signature=_signature(config, spec, dataset, partition) | start_signature(config.model, module),
        counts=partition.excerpt(dataset.train.y.numpy(), dataset.num_classes) if first else None,
        folder=folder,
        saved=saved,
    )


def _placed(
    config: Config, place: Place, dataset: Dataset, owners: Partition, spec: FlatSpec, device: torch.device
) -> ClientData:
    """What this rank holds of the training examples, as ``owners`` own them. Raises UsageError."""
    placement = config.data.placement
    assert placement != "auto"  # resolved
    try:
        return ClientData.of(
            dataset,
            owners,
            rank=place.rank,
            world_size=place.world_size,
            placement=placement,
            device=device,
            dtype=spec.dtype,
            skew=config.data.skew,
            seed=config.run.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _trainer(
    config: Config, task: Task, dataset: Dataset, data: ClientData, how: dict[str, Any]
) -> tuple[Trainer, str]:
    """How this rank trains its clients, and why so. Raises UsageError."""
    try:
        return LEVELS[config.privacy.level].trainer(config, task, data, dataset.test, how)
    except ValueError as error:
        raise UsageError(f"privacy.level={config.privacy.level!r}, {chosen(config, 'model')}: {error}") from error


def _held_out(config: Config, partition: Partition) -> tuple[Partition, Partition | None]:
    """What clients train on, and what each of them keeps out of it (None: nothing). Raises ValueError."""
    share, every = config.evaluate.holdout, config.evaluate.personal_every
    if not share:
        return partition, None
    used, held = partition.held_out(share, config.run.seed)
    held = adversary(config).without(held)
    if every and not held.sizes.any():
        raise ValueError(
            f"evaluate.personal_every={every}: nobody but Byzantine clients (attack.num_clients="
            f"{config.attack.num_clients}) has examples to be scored on; use personal_every=0, or fewer of them"
        )
    return used, held


def load_data(config: Config, place: Place | None = None) -> tuple[Dataset, Partition]:
    """The dataset and who owns which of its training examples. Raises UsageError naming key and remedy.

    Of data that lie divided, the examples of ``place``'s clients and no others (without a place, everybody's).
    """
    place = place or Place()
    try:
        if parts := _parts(config):
            return parts.divided(Path(config.data.root), place.rank, place.world_size)
        data = config.data
        dataset = load(data.name, Path(data.root), data.download, data.args)
        return dataset, data.partition.owners(dataset.train, config.run.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error


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


def _parts(config: Config) -> Parts | None:
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


def _device(config: Config, place: Place) -> torch.device:
    wanted, gpus = config.run.device, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and (wanted == "cuda" or config.run.backend == "nccl"):
        key = "run.device='cuda'" if wanted == "cuda" else "run.backend='nccl'"
        raise UsageError(f"{key}: this machine shows no GPU to torch {torch.__version__}; use auto, or cpu with gloo")
    if wanted == "cpu" and config.run.backend == "nccl":
        raise UsageError("run.backend='nccl': moves GPU memory only; use run.device=cuda, or run.backend=gloo")
    if wanted == "cpu" or not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def _signature(config: Config, spec: FlatSpec, dataset: Dataset, partition: Partition) -> dict[str, str]:
    """What must be equal on every rank: the model's layout, who owns what, every key that says what is learned."""
    layout = repr((spec.names, spec.shapes, spec.dtype)).encode()
    keys = {k: repr(v) for k, v in flatten(to_dict(config)).items() if k not in LOCAL}
    owners = partition.fingerprint(dataset.train.y.numpy())
    sums = {"model parameters": hashlib.sha256(layout).hexdigest(), "data and partition": owners}
    return {**keys, **{name: content[:16] for name, content in sums.items()}}
