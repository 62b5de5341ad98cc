"""``fedddp train --dry-run``: check a configuration, then train it on a few clients and examples, and keep nothing."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..api import GIVEN
from ..attacks import NoAttack
from ..comm.world import Place
from ..config import Config, ResolvedConfig
from ..config.schema import ExecutionSection
from ..data import Dataset, Examples, Partition
from ..federation import federate
from ..setup.assemble import connect
from ..setup.experiment import check_learned
from ..setup.load import load_data, prepare
from ..setup.prepared import Prepared
from ..setup.resolve import resolve
from ..setup.resume import found
from ..telemetry import Metrics

T = TypeVar("T", bound=Config)
FEW, MOST = 2, 100
"""Clients of the small round: in general, and where a rule or an attack needs a majority."""
BATCH, TESTED = 4, 8
"""Examples: of a client at most, and of the test set."""


def dry_run(given: Config) -> None:
    """Try the run that ``given`` describes, in one process, and print what was tried and how long it took.

    The configuration, data and model are checked as at every start. Then a few of its clients, with a batch of their
    own examples each, train two rounds of the same model in a folder that is removed; the second one continues from
    the checkpoint of the first.

    Raises:
        UsageError: the run would be refused, or its data are not there (nothing is downloaded).
    """
    began = time.perf_counter()
    given = _with(given, run={"resume": "never"}, data={"download": False})
    config = resolve(given, Place())
    with _tried("data") as said:
        dataset, partition = load_data(config)
        said.append(f"{config.data.name}, {len(dataset.train):,} examples of {partition.num_clients:,} clients")
    with _tried("checks") as said:
        one_by_one = _with(
            config, client={"execution": ExecutionSection(name="sequential")}
        )  # the other is tried below
        checked = prepare(one_by_one, Place(), dataset, partition).config
        said.append("the configuration fits its data and its model")
    with _quietly(), tempfile.TemporaryDirectory(prefix="fedddp-dry-run-") as folder:
        _train(_small(given, checked, folder), dataset, partition)
    print(f"a small run of {config.run.name} took {time.perf_counter() - began:.1f} s; nothing of it is kept")


def _train(small: Config, dataset: Dataset, partition: Partition) -> None:
    few, owners = _excerpt(dataset, partition, small)
    with _tried("training") as said:
        p = prepare(resolve(small, Place()), Place(), few, owners)
        (m,) = _rounds(p, 1)
        loss = "" if m["train_loss"] is None else f", train loss {m['train_loss']:.3g}"
        said.append(f"a round of {small.cohort.size} of {owners.num_clients} clients{loss}")
    scored = {key.replace("_", " "): value for key, value in m.items() if isinstance(value, float)}
    scores = ", ".join(f"{k} {v:.3g}" for k, v in scored.items() if k.startswith(("test", "personal")))
    print(f"  {'evaluation':<11} {scores}")
    assert p.output is not None
    folder = p.output.folder.path
    size = sum(file.stat().st_size for file in (folder / "checkpoints" / "round-000001").iterdir())
    print(f"  {'checkpoint':<11} {size:,} bytes")
    with _tried("resume") as said:
        again, saved = found(_with(p.config, run={"resume": str(folder)}), Place(), p.spec)
        history = _rounds(replace(p, output=replace(p.output, folder=again, saved=saved)), 2)
        said.append(f"round {history[-1]['round']} from the checkpoint of round 1")


def _rounds(p: Prepared, last: int) -> list[Metrics]:
    """Train to round ``last``; the metrics of all rounds."""
    experiment = connect(p)
    with experiment.ending():
        federate(experiment.federation.until(last), experiment.server)
        check_learned(experiment.federation.telemetry, experiment.prepared.data.num_clients)
        experiment.close()
    return experiment.federation.telemetry.history


def _small(given: Config, config: ResolvedConfig, folder: str) -> Config:
    """The same run with few clients and rounds, in a ``folder`` of its own; the party's account does not hear of it."""
    few = MOST if config.needs_single_updates or config.attack != NoAttack() else FEW
    drawn = min(config.cohort_size, few)
    noise = {"noise_multiplier": config.privacy.noise_multiplier, "target_epsilon": None}
    partition = replace(config.data.partition, num_clients=min(config.num_clients, drawn * min(config.separation, 30)))
    return _with(
        given,
        run={"rounds": 2, "dir": folder, "threads": config.run.threads},
        data={"name": GIVEN, "partition": partition},
        cohort={"size": drawn, "fraction": None},
        client={"stragglers": 0.0, "drop_stragglers": False, "local_epochs": 1}
        | ({"local_steps": 1} if config.client.local_steps else {}),
        evaluate={"target": None, "target_accuracy": None, "every": 1},
        checkpoint={"every": 1, "clients_dir": ""},
        privacy=noise | {"account": type(config.privacy.account)()},
        telemetry={"tensorboard": False, "progress": "off"},
    )


def _excerpt(dataset: Dataset, partition: Partition, small: Config) -> tuple[Dataset, Partition]:
    """The first examples of the first clients, and a few test examples."""
    clients, most = range(small.data.partition.num_clients), min(small.client.batch_size or BATCH, BATCH)
    own = [partition.indices(k)[: max(2, most)] for k in clients]
    rows = torch.from_numpy(np.concatenate(own)).long()
    tested = torch.linspace(0, len(dataset.test) - 1, min(TESTED, len(dataset.test))).long()
    few = replace(
        dataset,
        train=_rows(dataset.train, rows),
        test=_rows(dataset.test, tested),
        vocabulary=dataset.num_tokens or None,  # of all examples
    )
    return few, Partition.dealt(np.arange(len(rows)), np.array([len(numbers) for numbers in own]))


def _rows(examples: Examples, rows: torch.Tensor) -> Examples:
    return Examples(examples.x[rows], examples.y[rows])


def _with(config: T, **sections: dict[str, Any]) -> T:
    update = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=update)


@contextmanager
def _tried(name: str) -> Iterator[list[str]]:
    """Print what was tried, and its seconds."""
    said, began = list[str](), time.perf_counter()
    yield said
    print(f"  {name:<11} {' '.join(said)} ({time.perf_counter() - began:.1f} s)", flush=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside the block fedddp logs warnings only: what a start says was said once."""
    log = logging.getLogger("fedddp")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
