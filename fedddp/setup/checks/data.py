"""Checks that need the machine, the task, the data or the model besides the configuration."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...clients import compared_layer
from ...comm import Place
from ...config import ResolvedConfig, chosen
from ...data import MOST_PLANNED, Partition, Work
from ...flat import FlatSpec
from ...tasks import Task
from .configuration import compressed
from .table import Check, Values, failure, level_of


@dataclass(frozen=True)
class Facts:
    """A configuration, and what its data and its model add to it.

    Attributes:
        config: the configuration.
        place: this process's rank.
        task: what is learned.
        module: the initial model.
        spec: the layout of the model's flat vector.
        sizes: the number of training examples of each client, [N].
        held: the examples that clients hold out; None without ``evaluate.holdout``.
        overlap: whether an example may belong to several clients.
        fails_alone: the error of a training step on a single example, on which the model normalises by the batch;
            empty if there is none.
    """

    config: ResolvedConfig
    place: Place
    task: Task
    module: nn.Module
    spec: FlatSpec
    sizes: Tensor
    held: Partition | None = None
    overlap: bool = False
    fails_alone: str = ""

    @property
    def smallest_batch(self) -> int:
        """The fewest examples that the model trains on: 1, or 2 if it normalises by the batch."""
        return 2 if self.fails_alone else 1

    @property
    def work(self) -> Work:
        """How much a client does in a round."""
        c = self.config.client
        return Work(c.local_epochs, c.local_steps, c.batch_size, c.stragglers, self.smallest_batch)


def _without_gpu(key: str) -> Check[ResolvedConfig]:
    wanted = {"device": "cuda", "backend": "nccl"}[key]
    return Check(
        f"{key}-without-gpu",
        (f"run.{key}",),
        lambda c: (
            {"version": torch.__version__} if getattr(c.run, key) == wanted and not torch.cuda.is_available() else None
        ),
        "torch {version} finds no GPU on this machine",
        "use run.device=auto, or cpu with run.backend=gloo",
    )


MACHINE: tuple[Check[ResolvedConfig], ...] = (
    _without_gpu("device"),
    _without_gpu("backend"),
    Check(
        "backend-on-cpu",
        ("run.backend", "run.device"),
        lambda c: c.run.device == "cpu" and c.run.backend == "nccl",
        "moves GPU memory only",
        "use run.device=cuda, or run.backend=gloo",
    ),
)


def _named(f: Facts, applies: bool) -> Values | None:
    return {"task": chosen(f.config, "task")} if applies and f.task.draws else None


def _measures(key: str) -> Check[Facts]:
    def found(f: Facts) -> Values | None:
        target, known = f.config.target, (*f.task.metrics, "loss")
        if target is None or getattr(f.config.evaluate, key) is None or target.metric in known:
            return None
        return {"task": chosen(f.config, "task"), "metric": target.metric, "known": ", ".join(known)}

    return Check(
        f"task-{key.replace('_', '-')}",
        (f"evaluate.{key}", "task.name"),
        found,
        "{task} has no {metric}",
        "use evaluate.target with one of {known}, or write off",
    )


TASK: tuple[Check[Facts], ...] = (
    _measures("target_accuracy"),
    _measures("target"),
    Check(
        "contribution-ranks",
        ("evaluate.contribution",),
        lambda f: (
            {"ranks": f.place.world_size}
            if f.config.evaluate.contribution == "shapley" and f.place.world_size > 1
            else None
        ),
        "averages the updates of any clients anew, and they are on {ranks} ranks",
        "run it on one rank, or use contribution=leave_one_out",
    ),
    Check(
        "task-personal",
        ("evaluate.personal_every", "task.name"),
        lambda f: _named(f, bool(f.config.evaluate.personal_every)),
        "{task} has no accuracy",
        "use personal_every=0",
    ),
    Check(
        "task-contrasts",
        ("algorithm.name", "task.name"),
        lambda f: _named(f, f.config.algorithm.traits.contrasts),
        "compares features of a classifier, which {task} does not have",
        "use fedavg or fedprox",
    ),
    Check(
        "contrast-features",
        ("algorithm.name", "model.name"),
        lambda f: failure(lambda: compared_layer(f.module)) if f.config.algorithm.traits.contrasts else None,
        "compares features, and {why}",
    ),
    Check(
        "task-example-level",
        ("privacy.level", "task.name"),
        lambda f: _named(f, level_of(f.config).clips_gradients),
        "an example of {task} has no gradient of its own to clip",
        "use privacy.level=client",
    ),
)


def _too_much_work(key: str) -> Check[Facts]:
    def found(f: Facts) -> Values | None:
        if key != ("local_steps" if f.work.steps else "local_epochs"):
            return None
        planned = int(f.work.planned(f.sizes).max())
        if planned <= MOST_PLANNED:
            return None
        return {"largest": int(f.sizes.max()), "planned": planned, "most": MOST_PLANNED}

    return Check(
        f"work-{key.rpartition('_')[2]}",
        (f"client.{key}", "client.batch_size"),
        found,
        "the largest client ({largest} examples) would train on {planned:,} examples per round; at most {most:,} are "
        "possible",
        "lower it",
    )


def _sampler(f: Facts) -> Values | None:
    c = f.config
    return failure(lambda: c.cohort.sampler.sampler(f.sizes, c.cohort_size, c.run.seed, lambda cohort, w: f.sizes))


def _unequal_work(f: Facts) -> Values | None:
    """Return the sizes of clients if their work differs, be it in further passes over all they own."""
    more = f.config.algorithm.traits.trainings > 1 and len(f.sizes.unique()) > 1
    if not f.config.privacy.equal_work or not (more or len(f.work.planned(f.sizes).unique()) > 1):
        return None
    return {"least": int(f.sizes.min()), "most": int(f.sizes.max())}


def _incompressible(f: Facts) -> bool:
    if not compressed(f.config):
        return False
    algorithm = f.config.algorithm
    columns = f.config.aggregation.compression.columns(algorithm.vectors(f.spec), algorithm.uploaded(f.spec))
    return not columns.compressed


POPULATION: tuple[Check[Facts], ...] = (
    Check(
        "batch-of-one",
        ("client.batch_size", "model.name"),
        lambda f: (
            {"model": chosen(f.config, "model"), "why": f.fails_alone}
            if f.fails_alone and f.config.client.batch_size == 1
            else None
        ),
        "{model} does not train on a batch of one example ({why})",
        "use 2 or more, or a model that does not normalise by the batch",
    ),
    *map(_too_much_work, ("local_epochs", "local_steps")),
    Check(
        "single-examples",
        ("model.name", "data.partition.num_clients"),
        lambda f: {"n": len(f.sizes)} if f.sizes.any() and not (f.sizes >= f.smallest_batch).any() else None,
        "does not train on a single example, and none of the {n} clients has more",
        "use a model that does not normalise by the batch, or fewer clients",
    ),
    Check(
        "personal-byzantine",
        ("evaluate.personal_every", "attack.num_clients"),
        lambda f: bool(f.config.evaluate.personal_every) and f.held is not None and not f.held.sizes.any(),
        "only Byzantine clients have examples to be scored on",
        "use personal_every=0, or fewer Byzantine clients",
    ),
    Check(
        "equal-work-sizes",
        ("privacy.equal_work", "client.local_steps", "client.batch_size", "algorithm.name"),
        _unequal_work,
        "clients own {least} to {most} examples and differ in work, so time would tell who was drawn",
        "set client.local_steps, with a batch_size that all of them fill and an algorithm that trains once a round "
        "(fedavg)",
    ),
    Check("cohort-sampler", ("cohort.sampler.name", "cohort.size"), _sampler, "cannot draw these cohorts: {why}"),
)

COMPRESSION: tuple[Check[Facts], ...] = (
    Check(
        "compression-masked",
        ("aggregation.compression.name", "privacy.secure_aggregation.enabled"),
        lambda f: compressed(f.config) and f.config.privacy.secure_aggregation.enabled,
        "secure aggregation sums integers of a ring, which compressed updates are not",
        "use compression none, or privacy.secure_aggregation.enabled=false",
    ),
    Check(
        "compression-client-level",
        ("aggregation.compression.name", "privacy.level"),
        lambda f: compressed(f.config) and level_of(f.config).clips_updates,
        "the noise of privacy.level=client is added to integers of a ring, which compressed updates are not",
        "use compression none, or another privacy.level",
    ),
    Check(
        "compression-idle",
        ("aggregation.compression.name", "model.name"),
        _incompressible,
        "compresses no tensor of this model",
        "use a smaller rank, another compression, or none",
    ),
)
