"""Score a run's best model on its test set again, for the confusion matrix and the worst mistakes."""

from pathlib import Path

import torch

from ...checkpoints.export import BEST, LAST, exported
from ...checkpoints.saved import newest
from ...config import UsageError, build, read_toml
from ...errors import OWN_CODE, first_line
from ...evaluation.server import Score, Scorer
from ...flat import flatten
from ...setup.dry_run import task_of
from ...setup.load import load_data
from ...trained import load


def scored(folder: Path) -> tuple[Score, int]:
    """Return the score of the best model, else of the last one or of the newest checkpoint, and its round.

    Raises UsageError with the reason, whatever it is: the data are elsewhere, there is no model, the run was given
    objects that its configuration cannot name, or the task has no classes.
    """
    try:
        found = exported(folder, BEST) or exported(folder, LAST)
        saved = None if found else newest(folder)
        if not (found or saved):
            raise UsageError("the folder has neither an exported model nor a checkpoint")
        round = found[0].round if found else saved.round if saved else 0
        config = build(read_toml(folder / "config.toml"))
        dataset, _ = load_data(config)
        task = task_of(config, dataset, start=False)
        if not task.classifies:
            raise UsageError("the task has no classes")
        w = flatten(load(folder, best=bool(found and found[0].path.name == BEST)))
        scorer = Scorer(task, dataset.test, dataset.normalizer(w.dtype), torch.device("cpu"), config.run.seed)
        scorer.take(slice(None))
        return scorer.score(*scorer.measure(w), draws=False), round
    except OWN_CODE as error:
        raise UsageError(first_line(error)) from error
