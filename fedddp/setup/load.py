"""Load the data of this rank, the task, the model and the run folder, and check that the run is possible."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from ..clients import Trainer
from ..comm import Place
from ..config import Config, UsageError, chosen, flatten, to_dict
from ..data import ClientData, Dataset, Partition, load
from ..flat import FlatSpec
from ..models.weights import start_signature
from ..tasks import Task
from .checks import check_compression, secured
from .cohorts import check_cohort
from .dry_run import laid_out, rehearse, two_examples
from .levels import LEVELS, trained_how
from .prepared import Prepared
from .resolve import parts_of
from .resume import found
from .robustness import adversary
from .smallest_batch import check_sizes, smallest_batch
from .task import check_dataset, check_task, task_of

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


def prepare(
    config: Config,
    place: Place,
    dataset: Dataset | None = None,
    partition: Partition | None = None,
    task: Task | None = None,
) -> Prepared:
    """Load the data, place them, build and try the model, find the run folder. Raises UsageError naming key and remedy.

    Args:
        config: the resolved configuration.
        place: this process's rank.
        dataset: replaces the dataset of ``data.name``.
        partition: the examples of each client; replaces ``data.partition``.
        task: replaces the sections task, loss and model.
    """
    if dataset is None or partition is None:
        dataset, partition = load_data(config, place, dataset)
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


def load_data(config: Config, place: Place | None = None, dataset: Dataset | None = None) -> tuple[Dataset, Partition]:
    """Load the dataset, unless it is given, and draw its partition. Raises UsageError naming key and remedy.

    Of data that were divided (``data.name=parts``), load the examples of ``place``'s clients only; without a place, of
    all clients.
    """
    place = place or Place()
    try:
        if dataset is None and (parts := parts_of(config)):
            return parts.divided(Path(config.data.root), place.rank, place.world_size)
        data = config.data
        dataset = dataset or load(data.name, Path(data.root), data.download, data.args)
        return dataset, data.partition.owners(dataset.train, config.run.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error


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
