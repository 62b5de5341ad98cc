"""Load the trained model of a run folder for use elsewhere.

model, normalize = fedddp.load("runs/NAME"), fedddp.normalizer("runs/NAME")
scores = model(normalize(images))                                           # images: uint8 [n, C, H, W]
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .api import configured
from .checkpoints.export import BEST, LAST, best_of, exported
from .checkpoints.saved import Saved, candidates, changed, newest, of_round
from .config import UsageError, read_toml
from .data import Dataset, Normalizer
from .errors import OWN_CODE, first_line
from .flat import FlatModule, FlatSpec
from .models.weights import Weights
from .registry.choice import user_path
from .setup.dry_run import task_of

Inputs = dict[str, Any]

log = logging.getLogger("fedddp")


def load(run: str | Path, *, best: bool = False, round: int | None = None, model: Any = None) -> nn.Module:
    """Load the server's model of a run as a module on the CPU, in evaluation mode.

    It takes normalised inputs, see `normalizer`. For algorithms with a model per client or cluster it is the one that
    the server evaluates; for a conditional GAN, both networks (``generator``, ``discriminator``).

    Args:
        run: the run folder.
        best: take the round with the best test accuracy (without accuracies, the lowest test loss), not the last.
        round: take the checkpoint of this round.
        model: the model of a run that was given an object, which config.toml cannot describe: a module class, a
            function that makes a module, or a module, of which a copy is used.

    Raises:
        UsageError: the folder has no such model, or the module that its configuration describes does not fit.
    """
    folder = user_path(run)
    if best and round is not None:
        raise UsageError(f"best=True, round={round}: both say which model; give one of them")
    path, saved, inputs = _found(folder, best, round)
    module = _module(folder, inputs, model, keep_weights=saved is not None)
    if saved is None:
        try:
            return Weights.read(path, str(path)).into(module).eval()
        except UsageError as error:
            raise UsageError(f"{error}{_hint(model)}") from None
    if unlike := saved.unlike(FlatSpec.of(module, whole=True)):
        raise UsageError(f"{path}: is not of the configured model: {unlike}{_hint(model)}")
    flat = FlatModule(module)
    flat.load(saved.server()[0])
    return flat.module.eval()


def normalizer(run: str | Path) -> Normalizer:
    """Return the function from inputs as the dataset has them (pixels: uint8 [n, C, H, W]) to those of the model.

    Raises:
        UsageError: the folder has no model.
    """
    folder = user_path(run)
    dataset = Dataset.blank(_found(folder, False, None)[2])
    dtype = torch.float64 if _table(folder).get("client", {}).get("precision") == "float64" else torch.float32
    return dataset.normalizer(dtype)


def _found(folder: Path, best: bool, round: int | None) -> tuple[Path, Saved | None, Inputs]:
    """Return where the model is, an exported file or a checkpoint, and the description of its inputs."""
    files = [file for name in (LAST, BEST) if (file := exported(folder, name))]
    saved = newest(folder) if round is None else of_round(folder, round)
    if best:
        chosen = best_of(candidates(folder, 2**63))
        wanted = chosen.round if chosen else -1
        saved = of_round(folder, wanted)
    else:
        wanted = round if round is not None else max([saved.round if saved else 0, *(f.round for f, _ in files)])
    for file, inputs in files:
        if file.round == wanted:
            if not changed(folder, file):
                return file.path, None, inputs
            found = f"{file.path}: its SHA-256 is not the one in summary.json: it was changed since the run ended"
            if saved is None or saved.round != wanted:
                raise UsageError(f"{found}; copy it again, or load a checkpoint (round=...)", code="weights-changed")
            log.warning("%s; the checkpoint of round %d is loaded", found, wanted)
    if saved is None:
        which = f"checkpoint of round {round}" if round is not None else "evaluated model" if best else "model"
        there = {c.round for c in (*candidates(folder, 2**63), *(file for file, _ in files))} - {round}
        if round is not None and there:
            raise UsageError(f"{folder}: has no {which}; there is round {', '.join(map(str, sorted(there)))}")
        raise UsageError(
            f"{folder}: has no {which}; give a run folder of fedddp.train whose run ended, or has a checkpoint "
            "(checkpoint.every, checkpoint.keep)"
        )
    if saved.inputs is None:
        raise UsageError(f"{saved.folder}: was written by an earlier version, which did not keep what inputs it takes")
    return saved.folder, saved, saved.inputs


def _module(folder: Path, inputs: Inputs, model: Any, *, keep_weights: bool) -> nn.Module:
    """Build the module of the run's configuration. Raises UsageError."""
    table = _table(folder)
    kept = {section: table[section] for section in ("model", "task") if section in table}
    kept["client"] = {"precision": table.get("client", {}).get("precision", "float32")}
    seed = table.get("run", {}).get("seed", 0)
    try:
        config = configured(kept, **({} if model is None else {"model": model}))
        return task_of(config, Dataset.blank(inputs), start=keep_weights).model(seed)
    except OWN_CODE as error:
        raise UsageError(f"{folder}: its model cannot be rebuilt ({first_line(error)}){_hint(model)}") from error


def _table(folder: Path) -> dict[str, Any]:
    return read_toml(folder / "config.toml")


def _hint(model: Any) -> str:
    return "" if model is not None else "; if the run was given a module, pass it: fedddp.load(..., model=Net)"
