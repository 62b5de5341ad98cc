"""Choose parameters by federated k-fold cross-validation.

Each client's own examples are cut into k folds. For every combination of the grid, and for every fold, the clients
train together without it and what they learned is scored on it, where it lies: only counts leave a rank.
"""

import logging
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.run_folder import RunFolder, locate
from ..comm import Comm, Purpose, record
from ..comm.world import Place
from ..config import ResolvedConfig, UsageError, build, chosen, flatten, parse
from ..config.words import full
from ..data import Dataset, Examples, Partition
from ..data.partition.base import fold_sizes, without_fold
from ..evaluation.server import Evaluator, Score
from ..federation import federate
from ..setup.assemble import connect
from ..setup.load import load_data, prepare
from ..setup.prepared import Prepared
from ..setup.resolve import resolve
from ..telemetry import LastScore
from ..telemetry.tuning import Candidate, print_table, write
from .outcome import asked

log = logging.getLogger("fedddp")


Driver = Callable[["Search", Dataset, Partition, Place, Comm], list[Candidate]]
Trials = Callable[["Search", Path, Place], Driver]
"""Opens the record of trials in a folder, and returns what goes through them."""


@dataclass(frozen=True)
class Search:
    """What is tried: configurations (of ``choices``, one a combination of the grid), on how many folds of what.

    ``of``: the configuration that words of overrides amount to.
    """

    base: ResolvedConfig
    choices: tuple[tuple[str, ...], ...]  # words of overrides
    configs: tuple[ResolvedConfig, ...]
    folds: int
    examples: int
    out: Path | None
    of: Callable[[Sequence[str]], ResolvedConfig]


def run(args: Namespace) -> None:
    """Choose from the grid that ``args`` give; see `fedddp.cli.options.tune`."""
    log.setLevel(logging.WARNING)  # what a run says of itself at start would come with every fold
    place, layers = Place.from_env(), asked(args).layers
    more = {"folds": args.folds, "examples": args.examples, "out": args.out}
    if not args.trials:
        if args.range:
            raise UsageError(f"--range={args.range[0]}: a grid has values, not ranges; add --trials=N")
        record(_tune)(search_of(layers, place, grids=args.grid, **more), place)
        return
    from .trials import Space, by_trials  # which needs Optuna

    space = Space.of(args.grid, args.range)
    record(_tune)(search_of(layers, place, grids=space.corners, **more), place, partial(by_trials, space, args.trials))


def search_of(
    layers: Sequence[Mapping[str, Any]],
    place: Place,
    *,
    grids: Sequence[str],
    folds: int = 5,
    examples: int = 0,
    out: Path | None = None,
) -> Search:
    """Check every combination of the ``grids`` (KEY=VALUE,VALUE,...) before anything starts. Raises UsageError."""
    if not grids:
        raise UsageError("give what to choose from: --grid KEY=VALUE,VALUE,... (several times for several keys)")
    quiet = {"telemetry": {"progress": "off", "tensorboard": False}, "checkpoint": {"every": 0}}
    off = {"every": 0, "personal_every": 0, "target_accuracy": "off", "target": "off"}
    once = {"evaluate": off, "run": {"resume": "never"}}
    choices = tuple(product(*map(gridded, grids)))

    def of(words: Sequence[str]) -> ResolvedConfig:
        return resolve(build(*layers, *parse(words).layers, quiet, once), place)

    configs = tuple(map(of, choices))
    for privacy in (config.privacy for config in configs):
        if privacy.level != "none":
            raise UsageError(
                f"privacy.level={privacy.level!r}: every combination would spend a budget of its own; tune without, "
                "on data that are public"
            )
        if privacy.secure_aggregation.enabled:
            raise UsageError(
                "privacy.secure_aggregation.enabled=true: each rank's scores count the labels of its clients' own "
                "examples, and are sent unmasked; tune without, on data that are public"
            )
    return Search(resolve(build(*layers), place), choices, configs, folds, examples, out, of)


def gridded(text: str) -> tuple[str, ...]:
    """Of KEY=A,B,... the overrides --KEY=A, --KEY=B, ..."""
    key, equals, values = text.partition("=")
    key = full(key)
    if not equals or "." not in key or not all(values.split(",")):
        raise UsageError(f"--grid={text}: should be section.key=value,value,...")
    if key.startswith("data."):
        raise UsageError(f"--grid={text}: the folds are of one dataset and one partition; tune them in runs apart")
    return tuple(f"--{key}={value}" for value in values.split(","))


def _tune(search: Search, place: Place, trials: Trials | None = None) -> None:
    dataset, partition = load_data(search.base, place)
    _check_folds(search, partition, place.world_size)
    first, *others = search.configs
    for config in others:  # one that cannot run is refused before the first one does
        prepare(config, place, dataset, partition)
    first = prepare(first, place, dataset, partition)
    if not first.task.metrics:
        raise UsageError(f"{chosen(search.base, 'task')}: has no metric to choose by; tune a task that has one")
    target = locate(Path(search.base.run.dir), f"{search.base.run.name}-tune", "never").path
    target = search.out or (Path(search.base.run.dir) / f"{search.base.run.name}-trials" if trials else target)
    drive = trials(search, target, place) if trials else searched
    config = first.config.run
    comm = Comm.connect(place, first.device, backend=config.backend, timeout=config.timeout)
    candidates = drive(search, dataset, partition, place, comm)
    comm.barrier(Purpose.DONE)
    comm.close()
    if place.rank == 0:
        print_table(candidates, search.folds)
        write(target, candidates, search.folds, search.examples, search.base.run.rounds)
        print(f"written to {target}; train with what was chosen: fedddp train FILE.toml {target}/chosen.toml")


def searched(search: Search, dataset: Dataset, partition: Partition, place: Place, comm: Comm) -> list[Candidate]:
    """Every combination in every fold; rank 0 knows the scores, the others get none."""
    pairs = zip(search.choices, search.configs, strict=True)
    found = [tried(search, words, config, dataset, partition, place, comm) for words, config in pairs]
    return [candidate for candidate in found if candidate]


def tried(
    search: Search,
    words: Sequence[str],
    config: ResolvedConfig,
    dataset: Dataset,
    partition: Partition,
    place: Place,
    comm: Comm,
) -> Candidate | None:
    """One combination in every fold; None on ranks that do not know the scores, all but 0."""
    begun, scores = time.perf_counter(), []
    for fold in range(search.folds):
        score = _scored(_folded(config, search, fold, dataset, partition, place), comm)
        scores += [score] if score else []
    if place.rank:
        return None
    parameters = flatten(parse(words).layers[-1])
    metric = next(iter(scores[0].metrics))
    done = Candidate(parameters, [s.metrics[metric] for s in scores], [s.loss for s in scores], metric)
    value = f"{metric} {done.mean:.4f}" if done.mean is not None else f"no {metric}"
    print(f"{done.text}: {value}, {time.perf_counter() - begun:.1f} s", flush=True)
    return done


def _check_folds(search: Search, partition: Partition, ranks: int) -> None:
    """Whether no client trains on what another is scored on, and every rank has something to score in every fold."""
    if partition.overlaps:
        raise UsageError(
            f"{chosen(search.base, 'data.partition')}: clients' examples overlap here, so that one would train on what "
            "another is scored on; use a partition without overlap"
        )
    sizes = np.minimum(partition.sizes, search.examples) if search.examples else partition.sizes
    held = fold_sizes(sizes, search.folds - 1, search.folds)  # the smallest fold
    if min(held[rank::ranks].sum() for rank in range(ranks)) < 1:
        raise UsageError(
            f"--folds={search.folds}: the clients of some rank have too few examples for so many folds; give fewer "
            "folds or ranks"
        )


def _folded(
    config: ResolvedConfig, search: Search, fold: int, dataset: Dataset, partition: Partition, place: Place
) -> Prepared:
    """A run without ``fold``; its test set is that fold of the clients that live on this rank."""
    kept, held = without_fold(partition, fold, search.folds, seed=config.run.seed, most=search.examples)
    own = np.concatenate([rows for client, rows in held.items() if client % place.world_size == place.rank])
    rows = torch.from_numpy(own).long()
    examples = Examples(dataset.train.x[rows], dataset.train.y[rows])
    return prepare(config, place, replace(dataset, test=examples), kept)


def _scored(p: Prepared, comm: Comm) -> Score | None:
    """Train, and score what was learned on each rank's own test set; rank 0 knows the sum of the counts."""
    if comm.rank == 0:
        comm.check_signature(p.signature)  # rank 0 writes it down anew; the others compare with it once it is there
    comm.barrier(Purpose.DONE)
    last = LastScore()
    with tempfile.TemporaryDirectory(prefix="fedddp-tune-") as folder:
        run = RunFolder(Path(folder) / "run", resumed=False)
        experiment = connect(replace(p, output=p.output and replace(p.output, folder=run)), [last], comm)
        evaluator = Evaluator(p.task, p.test, p.data.normalize, comm, where="own", every=0, seed=p.config.run.seed)
        with experiment.ending():
            f = experiment.federation
            federate(replace(f, evaluation=replace(f.evaluation, server=evaluator)), experiment.server)
            experiment.close()
    return last.score
