"""What a sweep file describes: a base configuration, axes of labelled changes to it, and the runs of their product.

[sweep]                                  # how to go through it, see `Settings`
nproc = 2
files = ["../mnist/fedavg.toml"]         # what all runs have in common, relative to this file ...
[base]                                   # ... and more of it
run.rounds = 50
[axis.partition]                         # an axis: label = the keys that it stands for
iid = { data.partition.name = "iid" }
"2 labels" = { data.partition = { name = "labels", labels_per_client = 2 } }
[grid]                                   # an axis a key: its values are their own labels
run.seed = [0, 1, 2]
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ...comm.world import Place
from ...config import Config, UsageError, build, checked, flatten, merge, nested, read_toml
from ...config.schema import Section, checked_target
from ...registry.choice import Off, UserPath, user_path
from ...setup.resolve import resolve
from ...tasks.metrics import Target

OWNED = {"run.name": "sweep.name", "run.dir": "sweep.dir", "run.resume": "the same command again: it goes on by itself"}
"""Keys that the sweep sets for its runs, and what to use instead."""


class Settings(Section):
    """The [sweep] section."""

    name: str = Field(default="", description="of the sweep's folder; empty = the file's name")
    dir: Annotated[str, UserPath] = Field(default="runs", min_length=1, description="parent of the sweep's folder")
    nproc: int = Field(default=1, ge=1, le=1024, description="number of ranks per run")
    jobs: int = Field(default=1, ge=1, le=1024, description="runs side by side, each with its part of cores and GPUs")
    files: list[str] = Field(default=[], description="configuration files of all runs, before [base]")
    average: str = Field(default="run.seed", description="the axis whose runs are one row: mean and deviation")
    target_accuracy: Annotated[float | None, Off] = Field(
        default=None, gt=0, le=1, description="rounds to it are counted, and nothing is stopped by it"
    )
    target: Annotated[str | None, Off, AfterValidator(checked_target)] = Field(
        default=None, description="the same for any metric, such as 'auroc>=0.95' or 'perplexity<=9'"
    )

    @property
    def counted(self) -> Target | None:
        """The target to which rounds are counted; None: each run's own."""
        return Target.asked(self.target_accuracy, self.target)


class SweepFile(Section):
    """A sweep file as it is written."""

    sweep: Settings = Settings()
    base: dict[str, Any] = Field(default={})
    axis: dict[str, dict[str, dict[str, Any]]] = Field(default={})
    grid: dict[str, Any] = Field(default={})


@dataclass(frozen=True)
class Axis:
    """Labelled changes to the base, of which a run takes one. ``prefix`` stands before a label in a run's name."""

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    prefix: str = ""


@dataclass(frozen=True)
class GridRun:
    """One point of the grid: where it is (``labels``: axis -> label), and the configuration that it amounts to.

    ``name`` is made of ``words``, the labels as one tells them apart without their axes; it names the run's folder.
    """

    name: str
    words: tuple[str, ...]
    labels: Mapping[str, str]
    table: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """A grid whose every run was found possible, as far as that can be checked without data."""

    settings: Settings
    folder: Path
    axes: tuple[Axis, ...]
    runs: tuple[GridRun, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The axes that tell rows apart."""
        return tuple(axis.name for axis in self.axes if axis.name != self.settings.average)

    def only(self, patterns: Sequence[str]) -> tuple[GridRun, ...]:
        """The runs that match every pattern (shell-style, commas between alternatives) by name or one of the labels."""
        chosen = tuple(run for run in self.runs if all(_matches(run, pattern) for pattern in patterns))
        if not chosen:
            some = ", ".join(run.name for run in self.runs[:4]) + (", ..." if len(self.runs) > 4 else "")
            raise UsageError(f"--only={' --only='.join(patterns)}: no run of the grid is called that; there are {some}")
        return chosen


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """A file's sweep, ``overrides`` on top of all its runs. Raises UsageError before anything is made."""
    over = dict(overrides or {})
    table = merge(read_toml(path), {"sweep": over.pop("sweep", {})})
    try:
        file = checked(SweepFile, table)
        axes = _axes(file, list(table))
        _check_owned(file.base, over, *(change for axis in axes for change in axis.changes.values()))
        _check_apart(over, axes)
        if file.sweep.target and file.sweep.target_accuracy:
            raise UsageError("sweep.target, sweep.target_accuracy: both say to what rounds are counted; leave out one")
        settings = file.sweep.model_copy(update={"name": file.sweep.name or path.stem})
        shared: dict[str, Any] = {}
        for name in settings.files:
            shared = merge(shared, read_toml(path.parent / user_path(name)))
        runs = _runs(settings, axes, merge(shared, nested(file.base)), over)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Sweep(settings, Path(settings.dir) / settings.name, axes, runs)


def _runs(settings: Settings, axes: Sequence[Axis], base: dict[str, Any], over: dict[str, Any]) -> tuple[GridRun, ...]:
    """The product of the axes, each point checked as its own start would check it."""
    runs: dict[str, GridRun] = {}
    for labels in itertools.product(*(axis.changes for axis in axes)):
        words = tuple(f"{axis.prefix}{label}" for axis, label in zip(axes, labels, strict=True))
        name = "-".join(re.sub(r"[^\w.+=]+", "_", word).strip("_.") or "_" for word in words)
        if name in runs:
            raise UsageError(f"two runs would be called {name!r}; give them labels that differ in letters or digits")
        changes = [nested(axis.changes[label]) for axis, label in zip(axes, labels, strict=True)]
        table = base
        own = {"run": {"name": name, "dir": str(Path(settings.dir) / settings.name), "resume": "auto"}}
        for layer in (*changes, over, own):
            table = merge(table, layer)
        try:
            config = resolve(build(table), Place(world_size=settings.nproc, local_world_size=settings.nproc))
        except UsageError as error:
            raise UsageError(f"run {name}: {error}") from None
        runs[name] = GridRun(
            name, words, {axis.name: label for axis, label in zip(axes, labels, strict=True)}, table, config
        )
    return tuple(runs.values())


def _axes(file: SweepFile, order: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of both kinds, in the order in which the file has them."""
    named = [Axis(name, changes) for name, changes in file.axis.items()]
    listed = [_listed(key, values) for key, values in flatten(file.grid).items()]
    axes = [axis for section in order for axis in {"axis": named, "grid": listed}.get(section, ())]
    if not axes:
        raise UsageError("axis, grid: there is nothing to compare; write [axis.NAME] tables or [grid] lists")
    for axis in axes:
        if not axis.changes:
            raise UsageError(f"axis.{axis.name}: has no values; write LABEL = {{ section.key = value }}")
    if len({axis.name for axis in axes}) < len(axes):
        raise UsageError("axis, grid: the same name twice; give each axis its own")
    average, known = file.sweep.average, [axis.name for axis in axes]
    if average not in (*known, Settings().average):
        raise UsageError(f"sweep.average={average!r}: is no axis of this grid; the axes are {', '.join(known)}")
    return tuple(axes)


def _listed(key: str, values: Any) -> Axis:
    if not isinstance(values, list) or not values:
        raise UsageError(f"grid.{key}={values!r}: should be a list of values to try, such as [0, 1, 2]")
    labels = [_label(value) for value in values]
    if len(set(labels)) < len(labels):
        raise UsageError(f"grid.{key}={values!r}: the same value twice")
    return Axis(
        key,
        {label: {key: value} for label, value in zip(labels, values, strict=True)},
        "" if isinstance(values[0], dict | str) else f"{key.split('.')[-1]}=",
    )


def _label(value: Any) -> str:
    """A value as it stands in a table: of a section its name, then the other keys."""
    if not isinstance(value, dict):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(v if k == "name" else f"{k}={v}" for k, v in flatten(value).items())


def _check_owned(*tables: Mapping[str, Any]) -> None:
    for key in (key for table in tables for key in flatten(nested(table))):
        if key in OWNED:
            raise UsageError(f"{key}: the sweep sets it for each run; use {OWNED[key]}")


def _check_apart(over: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """An override of what an axis varies would make its runs all alike."""
    for axis in axes:
        varied = {key for change in axis.changes.values() for key in flatten(nested(change))}
        for key in flatten(over):
            if key in varied:
                raise UsageError(f"--{key}: axis {axis.name} varies it; choose some of its runs with --only=LABEL")


def _matches(run: GridRun, pattern: str) -> bool:
    words = (run.name, *run.words, *run.labels.values())
    return any(fnmatchcase(word, one.strip()) for one in pattern.split(",") for word in words)
