"""Find the folder that a run writes, and the checkpoint from which it continues."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from ..checkpoints.lock import Busy
from ..checkpoints.run_folder import SPENT, RunFolder, locate
from ..checkpoints.saved import Saved, differences, newest
from ..comm.world import Place
from ..config import ResolvedConfig, build, flatten, read_toml, to_dict
from ..errors import UsageError
from ..flat import FlatSpec

log = logging.getLogger("fedddp")


def found(config: ResolvedConfig, place: Place, spec: FlatSpec) -> tuple[RunFolder, Saved | None]:
    """Find the folder that rank 0 writes and the checkpoint that it continues from.

    A restart by the launcher continues by itself. Nothing is created; a folder that is resumed is locked from now on.

    Args:
        config: the configuration, which must be that of the checkpoint but for keys that may change.
        place: this process's rank.
        spec: the layout of the model, which must be that of the checkpoint.

    Raises:
        UsageError: the folder cannot be written, or is of another configuration or model.
    """
    folder = _writable(config, place)
    goes_on = place.coordinated and place.attempt > 0  # the launcher has said who was lost
    if folder.resumed and not goes_on and (lost := folder.settle()):
        log.warning("%s: %s", folder.path, lost)
    saved = newest(folder.path) if folder.resumed else None
    try:
        _check_continues(folder, saved, config, place, spec)
    except UsageError:
        folder.release()
        raise
    if saved and saved.tensors is None:
        log.warning(
            "%s names no layers: that the model has the same ones in the same order cannot be checked", saved.folder
        )
    if folder.resumed and not saved:
        log.warning("%s has no whole checkpoint: starting from round 1", folder.path)
    return folder, saved


def _check_continues(
    folder: RunFolder, saved: Saved | None, config: ResolvedConfig, place: Place, spec: FlatSpec
) -> None:
    """Raise UsageError if the run in ``folder`` was another one, or cannot go on with this number of ranks."""
    before = _completed(saved.config) if saved else _spent_under(folder)
    changed = differences(flatten(before), flatten(to_dict(config))) if before else []
    if changed:
        raise UsageError(
            f"run.resume={config.run.resume!r}: {folder.path} was made with another configuration: "
            f"{'; '.join(changed)}. Give the same values, or start a new run with --run.resume=never"
        )
    if saved is None:
        return
    if unlike := saved.unlike(spec):
        raise UsageError(
            f"run.resume={config.run.resume!r}: {saved.folder} is of another model: {unlike}. Give the model as it "
            "was, or start a new run with --run.resume=never"
        )
    apart, own = saved.kept_apart, config.checkpoint.clients_dir
    if apart and not own:
        raise UsageError(
            f"checkpoint.clients_dir='': {saved.folder} was written with it; name the same folder on every rank",
            code="clients-dir-missing",
        )
    if apart not in (0, place.world_size):
        raise UsageError(
            f"checkpoint.clients_dir={own!r}: {saved.folder} was written by {apart} ranks, each of which keeps what "
            f"its own clients remember; start {apart} ranks, not {place.world_size}",
            code="clients-dir-ranks",
        )


def resuming(folder: Path, config: ResolvedConfig, done: int, *, reached: bool, spent: bool) -> str:
    """Return what a resumed run logs at start: where it continues, or why it does not.

    Args:
        folder: the run folder.
        config: the configuration.
        done: the number of finished rounds.
        reached: whether the target was reached.
        spent: whether the privacy budget is used up.
    """
    if reached:
        key = "target" if config.evaluate.target else "target_accuracy"
        return f"{folder} is done: round {done} reached evaluate.{key}; set a harder one, or off, to train on"
    if done >= config.run.rounds:
        return (
            f"{folder} is done: {done} of {config.run.rounds} rounds are trained; set a larger run.rounds to train on"
        )
    if spent:
        return f"{folder} is done: privacy.target_epsilon allows no round after {done}; set a larger one to train on"
    return f"resuming {folder} at round {done + 1} of {config.run.rounds}"


def _writable(config: ResolvedConfig, place: Place) -> RunFolder:
    """Return the run folder. Raises UsageError if it can neither be written nor made, or another process writes it."""
    run = config.run
    try:
        folder = locate(Path(run.dir), run.name, run.resume, place.launch if place.may_be_a_restart else "")
        existing = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
        for part in folder.path.parts:
            (existing / part).exists()  # raises for a name that is too long
        probe = tempfile.mkdtemp(prefix=".fedddp-", dir=existing)  # root may write, even where nothing can be written
        os.rmdir(probe)
        if folder.resumed:
            folder = folder.held()
    except OSError as error:
        raise UsageError(
            f"run.dir={run.dir!r}, run.name={run.name!r}: no run can be written there ({error.strerror}); "
            "choose another folder"
        ) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    except Busy as error:
        raise UsageError(
            f"run.resume={run.resume!r}: {error}; wait for it or stop it, or start a run of another name with "
            "--run.name=NAME"
        ) from None
    return folder


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with the defaults of the keys that its version of fedddp did not have."""
    try:
        return to_dict(build(saved))
    except UsageError:  # it has keys of another version, or a model that was given as an object
        return saved


def _spent_under(folder: RunFolder) -> dict[str, Any] | None:
    """Return the configuration under which privacy was spent in a folder; None if none was.

    That counts without a checkpoint, too: a number of rounds means nothing with another sigma or sampling rate.
    """
    spent = folder.resumed and (folder.path / SPENT).exists()
    return to_dict(build(read_toml(folder.path / "config.toml"))) if spent else None
