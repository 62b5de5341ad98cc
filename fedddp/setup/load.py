"""Load the data of this rank, the task, the model and the run folder, and check that the run is possible."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..clients import LocalTrainingSpec, Trainer
from ..comm import Place
from ..config import Config, ResolvedConfig, chosen, flatten, to_dict
from ..data import DATASETS, ClientData, Dataset, Excerpt, Partition, Parts, given, load
from ..errors import named
from ..flat import FlatSpec
from ..models.weights import start_signature
from ..tasks import Task, targets_of
from ..telemetry.loggers import find
from .checks import AFTER_NOISE, BEFORE_NOISE, MACHINE, Facts, refuse
from .dry_run import check_dataset, fails_alone, laid_out, rehearse, task_of, two_examples
from .levels import level_for
from .noise import with_noise
from .prepared import Output, Prepared, home
from .resume import found

Owners = Partition | Sequence[Sequence[int]]
"""The examples of each client: a partition, or the numbers of each client's examples."""

log = logging.getLogger("fedddp")

LISTED = 10_000
"""Number of clients that the run folder lists at most; of more, as many evenly spread ones."""
MOST_COUNTS = 2**24
"""Numbers of that list, one per client and class: 128 MB. With very many classes fewer clients are listed."""

LOCAL = (
    "run.dir",
    "run.resume",
    "run.threads",
    "data.root",
    "data.partition.path",
    "model.weights",
    "privacy.secure_aggregation.roster",
    "privacy.secure_aggregation.key",
    "privacy.account.dir",
    "privacy.account.key",
    "privacy.account.epsilon",
    "privacy.account.delta",
)
"""Keys that may differ between the ranks of a run."""


def prepare(
    config: ResolvedConfig,
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
    refuse(MACHINE, config, config)
    if dataset is None or partition is None:
        dataset, partition = load_data(config, place, dataset)
    device = _device(config, place)
    torch.set_num_threads(config.run.threads)
    check_dataset(config, dataset)
    task = task_of(config, dataset, task)
    ranks = place.world_size if config.evaluate.where == "sharded" else 1
    module, spec = laid_out(config, task, dataset, device, ranks)
    dataset, used, held = _divided(config, dataset, partition, spec)
    facts = Facts(
        config=config,
        place=place,
        task=task,
        module=module,
        spec=spec,
        sizes=torch.from_numpy(used.sizes).long(),
        held=held,
        overlap=partition.overlaps,
        fails_alone=fails_alone(config, task, *two_examples(dataset, spec.dtype)),
    )
    config = checked(facts)
    return _prepared(dataclasses.replace(facts, config=config), dataset, used, partition, device)


def _prepared(f: Facts, dataset: Dataset, used: Partition, drawn: Partition, device: torch.device) -> Prepared:
    """Place the data of a run that passed all checks, try its training, and find its folder; see `prepare`.

    Args:
        f: the run.
        dataset: the examples, with what an attack poisons.
        used: what each client trains on.
        drawn: what each client owns.
        device: where this rank trains.
    """
    config, place, spec = f.config, f.place, f.spec
    shared = config.placement == "shared"  # every rank holds all of them
    placed = dataclasses.replace(dataset, train=dataset.train.to(device)) if shared else dataset
    data = _placed(config, place, placed, used, spec, device)
    training = _training(f, device)
    rehearse(config, f.task, f.module, dataset, data.sizes, training)
    return Prepared(
        config=config,
        place=place,
        data=data,
        held=_placed(config, place, placed, f.held, spec, device) if f.held else None,
        test=dataset.test,
        inputs=dataset.form(),
        task=f.task,
        spec=spec,
        training=training,
        trainer=_trainer(config, f.task, dataset, data, training),
        signature=_signature(config, spec, dataset, drawn) | start_signature(config.model, f.module),
        output=None if place.rank else _output(config, place, spec, _owned(config, drawn, dataset)),
    )


def _output(config: ResolvedConfig, place: Place, spec: FlatSpec, owned: Iterator[Excerpt]) -> Output:
    """Return where rank 0 writes. Raises UsageError, before there is a folder."""
    loggers = find(config.telemetry.loggers)
    return Output(*found(config, place, spec), *owned, loggers=loggers)


def _owned(config: ResolvedConfig, partition: Partition, dataset: Dataset) -> Iterator[Excerpt]:
    """Yield who owns what, of few clients and of many."""
    keys = config.privacy
    drawn = 60
    for most in (drawn, max(drawn, min(LISTED, MOST_COUNTS // dataset.num_classes))):
        counts = partition.excerpt(dataset.classes, dataset.num_classes, most)
        yield counts.without_labels() if keys.level != "none" or keys.secure_aggregation.enabled else counts


def checked(facts: Facts) -> ResolvedConfig:
    """Return the configuration with its noise multiplier filled in. Raises UsageError where data or model forbid it."""
    refuse(BEFORE_NOISE, facts, facts.config)
    config = with_noise(facts.config, facts.sizes)
    refuse(AFTER_NOISE, dataclasses.replace(facts, config=config), config)
    few = int(((facts.sizes > 0) & (facts.sizes < facts.smallest_batch)).sum())
    if few and facts.place.rank == 0:
        log.warning(
            "%d of %d clients have a single example, on which %s does not train: their updates are ignored",
            few,
            len(facts.sizes),
            chosen(config, "model"),
        )
    return config


def _training(f: Facts, device: torch.device) -> LocalTrainingSpec:
    """Return how clients train on ``device``."""
    client = f.config.client
    return LocalTrainingSpec(
        optimizer=client.optimizer,
        work=f.work,
        schedule=client.schedule,
        clip_norm=client.clip_norm,
        seed=f.config.run.seed,
        device=device,
        dtype=f.spec.dtype,
        autocast=client.precision == "bfloat16",
    )


def _placed(
    config: ResolvedConfig, place: Place, dataset: Dataset, owners: Partition, spec: FlatSpec, device: torch.device
) -> ClientData:
    """Return the training examples that this rank holds, as ``owners`` own them. Raises UsageError."""
    rank, ranks = home(config, place)
    with named():
        return ClientData(
            dataset.train,
            owners,
            dataset.normalizer(spec.dtype, device),
            rank=rank,
            world_size=ranks,
            placement=config.placement,
            device=device,
            skew=config.data.skew,
            seed=config.run.seed,
        )


def _trainer(
    config: ResolvedConfig, task: Task, dataset: Dataset, data: ClientData, spec: LocalTrainingSpec
) -> tuple[Trainer, str]:
    """Return how this rank trains its clients, and the reason in words. Raises UsageError."""
    with named(f"privacy.level={config.privacy.level!r}, {chosen(config, 'model')}"):
        return level_for(config.privacy).trainer(config, task, data, dataset.test, spec)


def _divided(
    config: ResolvedConfig, dataset: Dataset, partition: Partition, spec: FlatSpec
) -> tuple[Dataset, Partition, Partition | None]:
    """Return the data with what an attack poisons, what clients train on, and what they hold out (None: nothing).

    Raises UsageError where the algorithm does not fit the model or the attack does not fit the data.
    """
    with named():
        config.algorithm.vectors(spec)  # raises if the algorithm does not fit the model
        if config.attack.of_classes and dataset.classes is None:
            raise ValueError(
                f"{chosen(config, 'attack')}: gives examples other classes, which the targets of "
                f"{chosen(config, 'task')} are not; use an attack on updates, such as sign_flip"
            )
        config.attack.probes(dataset.test, dataset.num_classes)  # raises if the attack cannot be scored
        used, held = partition, None
        if config.evaluate.holdout:
            used, held = partition.held_out(config.evaluate.holdout, config.run.seed)
            held = config.adversary.without(held)
        dataset, used = config.adversary.poisoned(dataset, used)  # what is held out stays as it is
    return dataset, used, held


def load_data(
    config: Config, place: Place | None = None, dataset: Dataset | None = None, partition: Owners | None = None
) -> tuple[Dataset, Partition]:
    """Load the dataset and draw the partition of its training examples, where they are not given.

    Of data that were divided (``data.name=parts``), load the examples of ``place``'s clients only; without a place, of
    all clients. Raises UsageError naming key and remedy.
    """
    place, data = place or Place(), config.data
    with named():
        loader = DATASETS.get(data.name)
        if dataset is None and isinstance(loader, Parts):
            dataset, drawn = loader.divided(Path(data.root), *place.home)
        else:
            dataset, drawn = (
                dataset or load(data.name, Path(data.root), data.download, data.args, targets_of(config.task)),
                None,
            )
        if partition is None:
            return dataset, drawn or data.partition.owners(dataset.train, config.run.seed)
    with named("partition"):
        return dataset, given(partition, len(dataset.train))


def _device(config: ResolvedConfig, place: Place) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.run.device == "cpu" or not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def _signature(config: ResolvedConfig, spec: FlatSpec, dataset: Dataset, partition: Partition) -> dict[str, str]:
    """Return what must be equal on every rank: the layout of the model, the partition, and all keys but `LOCAL`."""
    layout = repr((spec.names, spec.shapes, spec.dtype, spec.constants)).encode()
    keys = {k: repr(v) for k, v in flatten(to_dict(config)).items() if k not in LOCAL}
    owners = partition.fingerprint(dataset.train.y.numpy())
    sums = {"model parameters": hashlib.sha256(layout).hexdigest(), "data and partition": owners}
    return {**keys, **{name: content[:16] for name, content in sums.items()}}
