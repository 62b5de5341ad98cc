"""Run federations from Python: in a script or a notebook, with own models, data and tasks as objects.

    result = fedddp.run(rounds=3, data="mnist-mini", model=Net, client={"local_epochs": 5})
    result.summary["final_test_accuracy"], result.module

A run leaves nothing behind but its folder: no process group, signal handler, random state, thread or open file, and the
number of torch's threads and the current GPU are restored. (glibc keeps freed memory from then on, see
`keep_freed_memory` in `fedddp.setup.experiment`.) Mistakes raise `UsageError`. Ctrl-C raises KeyboardInterrupt, after
the last finished round is written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .comm import Comm
from .comm.world import Place
from .config import Config, build, merge, nested, read_toml, to_dict
from .data import Dataset, Partition
from .errors import UsageError
from .evaluation.server import Score
from .flat import FlatModule
from .models import ImportedModule
from .registry.choice import keys_of, path_of
from .registry.spelling import key_suggestion
from .setup.assemble import connect
from .setup.experiment import Experiment, ProcessState
from .setup.load import Owners, load_data, prepare
from .setup.prepared import Prepared
from .setup.resolve import resolve
from .tasks import Task
from .telemetry import LastScore, Metrics, Sink
from .types import ServerState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIVEN = "given"
"""``data.name`` of a dataset that was given as an object."""

Layer = str | Path | Mapping[str, Any] | Config


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        server: the last state of the server.
        history: the metrics of each round, as in ``metrics.jsonl``.
        summary: the content of ``summary.json``.
        folder: the run folder; None on every rank but 0.
        task: what was learned.
        seed: the seed of the run.
        score: the last evaluation on the test set, on rank 0; None without.
    """

    server: ServerState
    history: list[Metrics]
    summary: Metrics
    folder: Path | None
    task: Task
    seed: int = 0
    score: Score | None = None

    @property
    def w(self) -> Tensor:
        """The model as a flat vector, [D]."""
        return self.server.w

    @property
    def module(self) -> nn.Module:
        """A new module with the trained parameters, on the CPU and in evaluation mode."""
        flat = FlatModule(self.task.model(self.seed))  # of the run: a model may have constants that are drawn from it
        flat.load(self.w.cpu())
        return flat.module.eval()

    def plot(self) -> Figure:
        """Draw the metric shown first over the rounds. Raises UsageError if no round was evaluated."""
        from .telemetry import notebook  # matplotlib: only who draws waits for it

        return notebook.curve(self._name, self.history)

    def confusion(self) -> Figure:
        """Draw the confusion matrix of the last evaluation. Raises UsageError where there is none."""
        from .telemetry import notebook

        return notebook.confusion(self.score, self.server.round)

    def _repr_html_(self) -> str:
        from .telemetry import notebook

        return notebook.html(self._name, self.summary, self.history)

    @property
    def _name(self) -> str:
        return self.folder.name if self.folder else "result"

    def __repr__(self) -> str:
        keys = ("rounds", "final_test_accuracy", "num_parameters")
        return f"Result({', '.join(f'{key}={self.summary[key]}' for key in keys)}, folder={str(self.folder)!r})"


def run(
    *layers: Layer,
    dataset: Dataset | None = None,
    partition: Owners | None = None,
    task: Task | Any = None,
    sinks: Sequence[Sink] = (),
    **sections: Any,
) -> Result:
    """Train a federation to its end.

    Args:
        layers: TOML files and tables ({"client.optimizer.lr": 0.05}), merged left to right.
        dataset: replaces the dataset of ``data.name``; see `Dataset.of`.
        partition: the numbers of each client's examples, or a `Partition`; replaces ``data.partition``.
        task: the section task (its name or table), or a `Task`, which replaces the sections task, loss and model.
        sinks: receive the record of every round, on rank 0; see `fedddp.telemetry.Sink`.
        sections: override the layers. The table of a section, its name (model="mlp"), an object
            (algorithm=FedAvg(...), a module class, a function that makes a module, or a module to start from), or a key
            of [run] by itself (rounds=3, seed=1).

    Returns:
        The trained model, the metrics and the run folder.

    Raises:
        UsageError: the configuration has a mistake; nothing was written.
        NothingLearned: no client contributed to any round.
        CommError: another rank was lost.
    """
    last = LastScore()
    experiment = assemble(*layers, dataset=dataset, partition=partition, task=task, sinks=[*sinks, last], **sections)
    server, summary = experiment.train()
    p, folder = experiment.prepared, experiment.folder.path if experiment.folder else None
    return Result(
        server, experiment.federation.telemetry.history, summary, folder, p.task, p.config.run.seed, last.score
    )


def assemble(
    *layers: Layer,
    dataset: Dataset | None = None,
    partition: Owners | None = None,
    task: Task | Any = None,
    sinks: Sequence[Sink] = (),
    comm: Comm | None = None,
    **sections: Any,
) -> Experiment:
    """Prepare a run up to its first round, to train by hand; arguments and errors are those of `run`.

        server = experiment.server
        for rounds in range(1, 6):
            server = federate(experiment.federation.until(rounds), server)
        experiment.close()

    torch uses ``run.threads`` threads until `Experiment.close`. A ``comm`` that is given is used and stays open.
    """
    before = ProcessState.current()
    try:
        experiment = connect(_prepared(layers, sections, dataset, partition, task), sinks, comm)
    except BaseException:
        before.restore()
        raise
    return replace(experiment, before=before)


def configured(*layers: Layer, **sections: Any) -> Config:
    """Return the configuration that `run` would train, validated. Raises UsageError."""
    tables = [_table(layer) for layer in layers]
    over: dict[str, Any] = {}
    for name, value in sections.items():
        over = merge(over, _section(name, value))
    return build(*tables, over)


def _prepared(
    layers: Sequence[Layer],
    sections: Mapping[str, Any],
    dataset: Dataset | None,
    partition: Owners | None,
    task: Task | Any,
) -> Prepared:
    if task is not None and not isinstance(task, Task):
        sections, task = {**sections, "task": task}, None
    if task is not None and "model" in sections:
        raise UsageError("model, task: a task makes its own model; give one of them")
    place = Place.from_env()
    config = configured(*layers, **sections)
    if task is not None and getattr(config.model, "weights", None):
        raise UsageError("model.weights, task: a task makes its own model; let that have the weights")
    if dataset is not None:
        if not isinstance(dataset, Dataset):
            raise UsageError(f"dataset: is a {type(dataset).__name__}; make it with Dataset.of(train, test)")
        config = config.model_copy(update={"data": config.data.model_copy(update={"name": GIVEN})})
    if partition is not None:
        asked, count = config.data.partition, _num_clients(partition)
        if asked.num_clients not in (0, count):
            raise UsageError(f"data.partition.num_clients={asked.num_clients}: the partition given has {count} clients")
        resized = replace(asked, num_clients=count)
        config = config.model_copy(update={"data": config.data.model_copy(update={"partition": resized})})
    config, owners = resolve(config, place), None
    if partition is not None:
        dataset, owners = load_data(config, place, dataset, partition)
    return prepare(config, place, dataset, owners, task)


def _num_clients(partition: Owners) -> int:
    if isinstance(partition, Partition):
        return partition.num_clients
    if not hasattr(partition, "__len__") or isinstance(partition, Mapping | str):
        raise UsageError(f"partition: is a {type(partition).__name__}; give a list of each client's example numbers")
    return len(partition)


def _table(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, str | Path):
        return read_toml(Path(layer))
    return to_dict(layer) if isinstance(layer, Config) else nested(layer)


def _section(name: str, value: Any) -> dict[str, Any]:
    """Return a keyword as a layer of configuration."""
    if name not in Config.model_fields:
        run_keys = type(Config().run).model_fields
        if name not in run_keys:
            near = key_suggestion(name, [*Config.model_fields, *run_keys], keys_of(Config))
            raise UsageError(f"{name}: unknown keyword{near or '; the sections are ' + ', '.join(Config.model_fields)}")
        return {"run": {name: value}}
    if isinstance(value, Mapping):
        return {name: nested(value)}
    if isinstance(value, str):
        return {name: {"name": value}}
    if isinstance(value, type) and is_dataclass(value):
        return {name: value()}
    return {name: _model(value) if name == "model" and callable(value) else value}


def _model(value: Any) -> Any:
    """Return the section of a module class, a function that makes a module, or a module to start from a copy of."""
    if isinstance(value, nn.Module):
        return ImportedModule(path_of(type(value)), lambda: copy.deepcopy(value))
    return ImportedModule(path_of(getattr(value, "func", value)), value)  # of a functools.partial, its function's name
