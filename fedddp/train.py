"""The program: read the configuration, find what is wrong with it, join the other ranks, train.

    torchrun --nproc_per_node=4 -m fedddp.train [FILE.toml ...] [--section.key=value ...]
    python -m fedddp.train                                        # one rank

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted and resumable.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, interrupt
from .checkpoint import vector_sha256
from .comm import CommError, Place, leave, record
from .config import Config, UsageError, build, flatten, help_text, parse, read_toml, to_dict, to_toml
from .experiment import Experiment, Prepared, connect, prepare, resolve
from .federation import federate
from .interrupt import Interrupted
from .telemetry import Metrics, Sink, log_to_stderr, summary_table

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, interrupt.EXIT_CODE

log = logging.getLogger("fedddp")


class NothingLearned(RuntimeError):
    """A run that went through all its rounds without one client's contribution: a mistake, not bad luck."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (default: the command line); the exit code."""
    place = Place.from_env()
    log_to_stderr(place.rank, place.world_size)
    words = sys.argv[1:] if argv is None else list(argv)
    with interrupt.handled():
        code = _guarded(words, place)
    if place.world_size > 1 and code != DONE:
        leave(code)  # not through the destructors of a process group that others may still wait in
    return code


def _guarded(words: Sequence[str], place: Place) -> int:
    """Run, and turn what went wrong into a line on stderr and an exit code."""
    try:
        return _run(words, place)
    except UsageError as error:
        return _usage(str(error), place)
    except (CommError, NothingLearned) as error:
        log.error("%s", error)
        return FAILED
    except Interrupted as request:
        log.warning("%s before the first round", request)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED


def _run(words: Sequence[str], place: Place) -> int:
    request = parse(words)
    if "--help" in request.flags:
        return _say(help_text(), place)
    if "--version" in request.flags:
        return _say(f"fedddp {__version__}", place)
    config = resolve(_configured(request.layers), place)
    if "--print-config" in request.flags:
        return _say(to_toml(config), place)
    return record(_train)(prepare(config, place)) or DONE


def _configured(layers: Sequence[dict[str, Any]]) -> Config:
    """The layers' configuration, on top of that of the run folder that is resumed, if one is named."""
    config = build(*layers)
    if config.run.resume in ("never", "auto"):
        return config
    path = Path(config.run.resume)
    if not (path / "config.toml").is_file():
        raise UsageError(f"run.resume={config.run.resume!r}: is not a run folder (it has no config.toml)")
    return build(read_toml(path / "config.toml"), *layers)


def _train(prepared: Prepared) -> int:
    folder = prepared.folder
    try:
        experiment = connect(prepared, _tensorboard(prepared))
        try:
            server = federate(experiment.federation, experiment.server)
        except Interrupted as request:
            return _interrupted(experiment, str(request))
        if experiment.federation.telemetry.nothing_learned:
            raise NothingLearned("every client failed in every round; the warnings above say why")
        summary = _summary(prepared, experiment, vector_sha256(server.w))
        experiment.federation.telemetry.close(summary)
        experiment.federation.comm.close()
    except Exception as error:
        if folder and folder.path.exists():
            folder.status("failed", error=f"{type(error).__name__}: {error}")
        raise
    if folder:
        summary_table(summary)
        print(f"run folder: {folder.path}\nTensorBoard: tensorboard --logdir {prepared.config.run.dir}", flush=True)
    return DONE


def _tensorboard(p: Prepared) -> list[Sink]:
    if p.folder is None or not p.config.telemetry.tensorboard:
        return []
    from .telemetry.tensorboard import TensorBoard  # seconds of imports that the other ranks do without

    counts = p.partition.counts(p.dataset.train.y.numpy(), p.dataset.num_classes)
    done = p.saved.round if p.saved else 0
    return [TensorBoard(p.folder.path / "tensorboard", done, to_toml(p.config), flatten(to_dict(p.config)), counts)]


def _summary(prepared: Prepared, experiment: Experiment, sha256: str) -> Metrics:
    return experiment.federation.telemetry.summary(
        model_sha256=sha256,
        num_parameters=prepared.spec.num_trainable,
        world_size=prepared.place.world_size,
        num_clients=prepared.partition.num_clients,
    )


def _interrupted(experiment: Experiment, reason: str) -> int:
    """Write the last finished round if it is not written, and say how to go on."""
    written = experiment.federation.checkpoints.flush(patience=3.0)
    experiment.federation.telemetry.close(None)
    if experiment.folder:
        experiment.folder.status("interrupted", round=written or 0, reason=reason)
        log.warning("%s: stopped after round %d; go on with --run.resume=auto", reason, written or 0)
    return INTERRUPTED


def _say(text: str, place: Place) -> int:
    if place.rank == 0:
        print(text, flush=True)
    return DONE


def _usage(message: str, place: Place) -> int:
    """One line from one rank: the others give it time to speak before their exit ends it."""
    if place.rank == 0:
        log.error("%s", message)
        return USAGE
    try:
        for _ in range(40):
            interrupt.check()
            time.sleep(0.1)
    except Interrupted:
        pass
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
