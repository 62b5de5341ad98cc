"""Choose parameters by Optuna: each trial is a combination that it proposes, scored by federated cross-validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.saved import fixed
from ..comm import Comm, Purpose
from ..comm.world import Place
from ..config import UsageError, flatten, to_dict
from ..config.words import full
from ..data import Dataset, Partition
from ..registry.optional import imported
from ..telemetry.tuning import Candidate
from .tune import Driver, Search, gridded, tried

if TYPE_CHECKING:
    from optuna import Study, Trial  # pyright: ignore[reportMissingImports]

log = logging.getLogger("fedddp")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, drawn on a logarithmic scale if ``log``."""

    key: str
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, text: str) -> Range:
        """Of KEY=LOW:HIGH or KEY=LOW:HIGH:log. Raises UsageError."""
        key, _, values = text.partition("=")
        parts = values.split(":")
        try:
            low, high = (int(part) if part.lstrip("-").isdecimal() else float(part) for part in parts[:2])
        except ValueError:
            raise UsageError(f"--range={text}: should be section.key=LOW:HIGH, or LOW:HIGH:log") from None
        if not low < high or parts[2:] not in ([], ["log"]) or (parts[2:] and low <= 0):
            raise UsageError(f"--range={text}: should be from a smaller number to a larger one; with :log above 0")
        gridded(f"{key}={low},{high}")  # the same keys as a grid's
        return cls(full(key), low, high, bool(parts[2:]))

    def suggest(self, trial: Trial) -> float:
        """A value for ``trial``; whole numbers between whole numbers."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, float(self.low), float(self.high), log=self.log)


@dataclass(frozen=True)
class Space:
    """What trials choose from: ranges, and the values of grids."""

    ranges: tuple[Range, ...]
    grids: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, grids: Sequence[str], ranges: Sequence[str]) -> Space:
        """Read the options --grid and --range. Raises UsageError."""
        values = {full(text.partition("=")[0]): tuple(text.partition("=")[2].split(",")) for text in grids}
        return cls(tuple(map(Range.of, ranges)), values)

    @property
    def corners(self) -> list[str]:
        """A small grid, whose combinations are checked before the first trial."""
        ends = [f"{one.key}={one.low},{one.high}" for one in self.ranges]
        return [*ends, *(f"{key}={','.join(values)}" for key, values in self.grids.items())]

    def words(self, trial: Trial) -> list[str]:
        """The overrides that ``trial`` stands for."""
        numbers = [f"--{one.key}={one.suggest(trial)!r}" for one in self.ranges]
        return numbers + [f"--{key}={trial.suggest_categorical(key, values)}" for key, values in self.grids.items()]


def by_trials(space: Space, count: int, search: Search, folder: Path, place: Place) -> Driver:
    """Return a driver of ``count`` trials, those of earlier calls in ``folder`` among them.

    Raises UsageError if Optuna is missing, or if the trials in ``folder`` are of another search.
    """
    study = _study(space, search, folder) if place.rank == 0 else None

    def drive(search: Search, dataset: Dataset, partition: Partition, place: Place, comm: Comm) -> list[Candidate]:
        left = torch.tensor([count - len(_done(study)) if study else 0])
        for _ in range(int(comm.broadcast(left, Purpose.RESUME))):
            trial = study.ask() if study else None
            proposed = "\n".join(space.words(trial)) if trial else ""
            words = comm.broadcast_text(proposed, Purpose.RUN_FOLDER).split("\n")
            found = tried(search, words, search.of(words), dataset, partition, place, comm)
            if study and trial and found:
                trial.set_user_attr("values", found.values)
                trial.set_user_attr("losses", found.losses)
                trial.set_user_attr("parameters", dict(found.parameters))
                trial.set_user_attr("metric", found.metric)
                study.tell(trial, max(found.quality, -1e30))  # Optuna takes no infinity
        return _done(study) if study else []

    return drive


def _study(space: Space, search: Search, folder: Path) -> Study:
    optuna: Any = imported("optuna", "tune", "--trials")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = json.dumps([repr(space), search.folds, search.examples, fixed(flatten(to_dict(search.base)))], default=str)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "trials.log")))
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
    if study.user_attrs.get("asked", asked) != asked:
        raise UsageError(f"{folder}: holds trials of another search; give another --out, or remove that folder")
    study.set_user_attr("asked", asked)
    found = len(_done(study))
    study.sampler = optuna.samplers.TPESampler(seed=search.base.run.seed + found)
    if found:
        log.warning("%s: goes on after %d trials", folder, found)
    return study


def _done(study: Study) -> list[Candidate]:
    """The trials that were completed; one that was interrupted is not."""
    told = [trial.user_attrs for trial in study.trials if trial.state.is_finished() and trial.user_attrs]
    return [Candidate(a["parameters"], a["values"], a["losses"], a["metric"]) for a in told]
