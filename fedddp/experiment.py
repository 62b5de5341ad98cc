"""From a configuration to a federation: what one rank can check alone (`prepare`), then what needs all (`connect`)."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .aggregation import ExactSum, FastSum, Pipeline
from .checkpoint import Checkpoints, Saved, differences, newest
from .choice import import_class
from .clients import ClientStore, SequentialTrainer
from .comm import Comm, Place
from .config import Config, UsageError, flatten, to_dict, to_toml
from .data import DATASETS, ClientData, Dataset, Partition
from .data.datasets import from_class
from .evaluation import Evaluator, local_cores
from .federation import Federation, initialise
from .flat import FlatSpec
from .run_folder import RunFolder, locate
from .sampling import UniformSampler, home_rank
from .tasks import Task
from .telemetry import Files, Sink, Telemetry, progress, rewind
from .types import ServerState

log = logging.getLogger("fedddp")

LOCAL = ("run.dir", "run.resume", "data.root")  # may differ between hosts

TRAINERS = {"auto": SequentialTrainer, "sequential": SequentialTrainer}


@dataclass(frozen=True)
class Prepared:
    """A run that was found possible: nothing has been sent or written yet. ``folder`` is rank 0's."""

    config: Config
    place: Place
    device: torch.device
    dataset: Dataset
    partition: Partition
    task: Task
    spec: FlatSpec
    folder: RunFolder | None
    saved: Saved | None


@dataclass(frozen=True)
class Experiment:
    """A federation ready to train from ``server``, and rank 0's run folder."""

    federation: Federation
    server: ServerState
    folder: RunFolder | None


def resolve(config: Config, place: Place) -> Config:
    """Fill in what depends on the ranks and on other keys, and check what needs no data. Raises UsageError."""
    partition = config.data.partition
    partition = dataclasses.replace(partition, num_clients=partition.num_clients or place.world_size)
    population, cohort = partition.num_clients, config.cohort
    if cohort.size is not None and cohort.size > population:
        raise UsageError(
            f"cohort.size={cohort.size}: there are only {population} clients; ask for at most {population}"
        )
    threads = config.run.threads or (
        1 if config.aggregation.sum == "exact" else max(1, local_cores() // place.local_world_size)
    )
    name = config.run.name or "-".join(str(to_dict(config)[s]["name"]) for s in ("algorithm", "data", "model"))
    run = config.run.model_copy(update={"name": name, "threads": threads})
    data = config.data.model_copy(update={"partition": partition})
    return config.model_copy(update={"run": run, "data": data})


def prepare(config: Config, place: Place) -> Prepared:
    """Load the data, deal it out, build the model, find the run folder. Raises UsageError naming key and remedy."""
    device = _device(config, place)
    torch.set_num_threads(config.run.threads)
    dataset, partition = load_data(config)
    dtype = getattr(torch, config.client.precision)
    shape = tuple(dataset.train.x.shape[1:])
    task = Task(lambda: config.model.build(shape, dataset.num_classes).to(dtype), dataset.num_classes)
    spec = _checked_model(config, task, torch.zeros(2, *shape, dtype=dtype))
    folder, saved = _run_folder(config, place) if place.rank == 0 else (None, None)
    return Prepared(config, place, device, dataset, partition, task, spec, folder, saved)


def load_data(config: Config) -> tuple[Dataset, Partition]:
    """The dataset and who owns which of its training examples. Raises UsageError naming key and remedy."""
    try:
        dataset = _dataset(config)
        return dataset, config.data.partition.split(dataset.train.y.numpy(), config.run.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error


def connect(p: Prepared, sinks: list[Sink], comm: Comm | None = None) -> Experiment:
    """Join the other ranks (or take a ``comm`` that has) and assemble the federation, where rank 0's run stands."""
    config, place = p.config, p.place
    comm = comm or Comm.connect(place, p.device, backend=config.run.backend, timeout=config.run.timeout)
    comm.check_signature(_signature(p))
    if comm.remark and comm.rank == 0:
        log.warning(comm.remark)
    dtype, seed = p.spec.dtype, config.run.seed
    data = ClientData.of(
        p.dataset, p.partition, rank=place.rank, world_size=place.world_size, device=p.device, dtype=dtype
    )
    algorithm = config.algorithm
    layout = algorithm.vectors(p.spec.dim)
    reduce = ExactSum(p.device) if config.aggregation.sum == "exact" else FastSum(dtype, p.device)
    template = torch.zeros(p.spec.dim, dtype=dtype, device=p.device)
    store = ClientStore(lambda: algorithm.init_client(template))
    checkpoints = Checkpoints(
        Path(comm.broadcast_text(str(p.folder.path.absolute()) if p.folder else "", "run folder")),
        to_dict(config),
        comm,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        stateful=bool(algorithm.init_client(template)),
    )
    evaluate = config.evaluate
    federation = Federation(
        task=p.task,
        algorithm=algorithm,
        trainer=TRAINERS[config.client.execution.name](
            p.task,
            data,
            config.client.optimizer,
            local_epochs=config.client.local_epochs,
            batch_size=config.client.batch_size,
            seed=seed,
            device=p.device,
            dtype=dtype,
        ),
        sampler=UniformSampler(data.num_clients, cohort_size(config), seed),
        pipeline=Pipeline(layout, reduce, data.sizes, comm),
        store=store,
        evaluator=Evaluator(
            p.task,
            p.dataset.test,
            data.normalize,
            comm,
            where=evaluate.where,
            every=evaluate.every,
            target_accuracy=evaluate.target_accuracy,
            seed=seed,
        ),
        telemetry=_telemetry(p, sinks),
        checkpoints=checkpoints,
        comm=comm,
        rounds=config.run.rounds,
        seed=seed,
    )
    return Experiment(federation, _first_state(federation, p.saved), p.folder)


def cohort_size(config: Config) -> int:
    """m = max(C N, 1), or what was asked for."""
    population = config.data.partition.num_clients
    if config.cohort.size is not None:
        return config.cohort.size
    return max(1, round((config.cohort.fraction or 1.0) * population))


def _first_state(f: Federation, saved: Saved | None) -> ServerState:
    """w_0, or the checkpoint that rank 0 found, sent to all."""
    server = initialise(f)
    header = torch.tensor([saved.round if saved else 0, saved is not None], dtype=torch.int64)
    done, resumed = f.comm.broadcast(header, "resume").tolist()
    if not resumed:
        return server
    mine = saved.server() if saved else server
    w = f.comm.broadcast(mine.w.to(server.w), "resume")
    extra = {name: f.comm.broadcast(mine.extra[name].to(like), "resume") for name, like in server.extra.items()}
    f.checkpoints.restore(f.store, done, lambda k: home_rank(k, f.comm.world_size) == f.comm.rank)
    return ServerState(w, server.num_trainable, extra, done)


def _telemetry(p: Prepared, sinks: list[Sink]) -> Telemetry:
    if p.folder is None:
        return Telemetry()
    done, rounds = p.saved.round if p.saved else 0, p.config.run.rounds
    p.folder.path.mkdir(parents=True, exist_ok=True)
    p.folder.write("config.toml", to_toml(p.config))
    history = rewind(p.folder, done)
    p.folder.status("running", round=done, rounds=rounds)
    files = [Files(p.folder, rounds), *progress(p.config.telemetry.progress, done, rounds), *sinks]
    return Telemetry(files, history, p.config.evaluate.target_accuracy)


def _run_folder(config: Config, place: Place) -> tuple[RunFolder, Saved | None]:
    """Where rank 0 writes, and the checkpoint it goes on from. A restart by the launcher goes on by itself."""
    resume = "auto" if config.run.resume == "never" and place.attempt > 0 else config.run.resume
    try:
        folder = locate(Path(config.run.dir), config.run.name, resume)
    except ValueError as error:
        raise UsageError(str(error)) from None
    existing = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"run.dir={config.run.dir!r}: {existing} cannot be written to; choose another folder")
    saved = newest(folder.path) if folder.resumed else None
    if saved:
        changed = differences(flatten(saved.config), flatten(to_dict(config)))
        if changed:
            raise UsageError(
                f"run.resume={config.run.resume!r}: {folder.path} was made with another configuration: "
                f"{'; '.join(changed)}. Give the same values, or start a new run with --run.resume=never"
            )
    elif folder.resumed:
        log.warning("%s has no whole checkpoint: starting from round 1", folder.path)
    return folder, saved


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


def _dataset(config: Config) -> Dataset:
    data = config.data
    load: Any
    if ":" in data.name:
        try:
            cls = import_class(data.name)
        except ValueError as error:
            raise UsageError(f"data.name={data.name!r}: {error}") from None
        load = lambda *args, **kwargs: from_class(cls, *args, **kwargs)  # noqa: E731
        bound = cls
        extra = {"root": data.root, "train": True, "download": False}
    elif data.name in DATASETS:
        load = bound = DATASETS[data.name]
        extra = {"root": data.root, "download": False}
    else:
        known = ", ".join(DATASETS)
        raise UsageError(f"data.name={data.name!r}: should be one of {known} or package.module:Class")
    try:
        inspect.signature(bound).bind(**extra, **data.args)
    except TypeError as error:
        raise UsageError(f"data.args={data.args!r}: {data.name} does not take these ({error})") from None
    return load(Path(data.root), data.download, **data.args)


def _checked_model(config: Config, task: Task, inputs: torch.Tensor) -> FlatSpec:
    """Build the model once and let it look at two blank examples."""
    name = to_dict(config)["model"]["name"]
    try:
        module = task.model(config.run.seed).eval()
        spec = FlatSpec.of(module)
        with torch.no_grad():
            outputs = module(inputs)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(
            f"model.name={name!r}: does not run on inputs of shape {list(inputs.shape)} "
            f"({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (len(inputs), task.num_classes):
        got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise UsageError(
            f"model.name={name!r}: should give [{len(inputs)}, {task.num_classes}] scores for {len(inputs)} examples, "
            f"gives {got}"
        )
    return spec


def _signature(p: Prepared) -> dict[str, str]:
    """What must be equal on every rank: the model's layout, and every key that says what is learned."""
    layout = repr((p.spec.names, p.spec.shapes, p.spec.dtype)).encode()
    config = {k: repr(v) for k, v in flatten(to_dict(p.config)).items() if k not in LOCAL}
    labels = hashlib.sha256(p.dataset.train.y.numpy().tobytes() + p.partition.order.tobytes()).hexdigest()
    return {**config, "model parameters": hashlib.sha256(layout).hexdigest()[:16], "data and partition": labels[:16]}
