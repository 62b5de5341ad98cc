"""The program: read the configuration, find what is wrong with it, join the other ranks, train.

    torchrun --nproc_per_node=4 -m fedddp.train [FILE.toml ...] [--section.key=value ...]
    python -m fedddp.train                                        # one rank

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 interrupted and resumable.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoints.checkpoint import vector_sha256
from .checkpoints.durable import WriteError
from .comm import CommError, Purpose, interrupt, record
from .comm.interrupt import Interrupted, leave
from .comm.world import SPANS_HOSTS, Place, alone_of_many, check_meeting, spans_hosts
from .config import Config, UsageError, build, help_text, one_line, parse, read_toml, to_toml
from .federation import Federation, federate
from .setup.assemble import Experiment, connect
from .setup.checks import caveat
from .setup.load import prepare
from .setup.prepared import Prepared
from .setup.resolve import resolve
from .telemetry import Metrics, lasting_output, log_to_stderr, summary_table

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, interrupt.EXIT_CODE

log = logging.getLogger("fedddp")


class NothingLearned(RuntimeError):
    """A run that ends without one client's contribution: a mistake, not bad luck."""


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (default: the command line); the exit code."""
    try:
        place = Place.from_env()
    except UsageError as error:
        log_to_stderr(0, 1)
        return _usage(str(error), Place())
    log_to_stderr(place.rank, place.world_size)
    words = list(argv or ())
    if argv is None:
        words = sys.argv[1:]
        if not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
            sys.path.insert(0, "")  # where python -m has it: a console script has its own folder there instead
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
        return _usage(one_line(str(error)), place)
    except (CommError, NothingLearned, WriteError) as error:
        log.error("%s", error)
        return FAILED
    except Interrupted as request:
        log.warning("%s: stopped", request)
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
    check_meeting(place, os.environ)
    if warning := alone_of_many(os.environ):
        log.warning("%s", warning)
    return record(_train)(prepare(config, place)) or DONE


def _configured(layers: Sequence[dict[str, Any]]) -> Config:
    """The layers' configuration, on top of that of the run folder that is resumed, if one is named."""
    config = build(*layers)
    saved = Path(config.run.resume) / "config.toml"
    if config.run.resume in ("never", "auto") or not saved.is_file():  # what is no run folder is refused when located
        return config
    return build(read_toml(saved), *layers)


def _train(prepared: Prepared) -> int:
    place = prepared.place
    if place.rank == 0 and spans_hosts(place, os.environ) and not prepared.config.privacy.trust_network:
        log.warning(SPANS_HOSTS)
    experiment = connect(prepared)
    federation, folder = experiment.federation, experiment.folder
    try:
        server = federate(federation, experiment.server)
        check_learned(federation)
        federation.comm.barrier(Purpose.DONE)
        summary = summary_of(prepared, experiment, vector_sha256(server.w))
        federation.telemetry.close(summary)
        federation.comm.close()
    except Interrupted as request:
        return _interrupted(experiment, request)
    except Exception as error:
        if folder:
            folder.ended(error)
        if isinstance(error, WriteError):  # this rank's own, and its line is the last
            federation.telemetry.abandon()
        raise
    finally:
        federation.comm.release()
    if folder:
        summary_table(summary)
        print(f"run folder: {folder.path}\nTensorBoard: {_tensorboard_command(folder.path.parent)}", flush=True)
    return DONE


def check_learned(federation: Federation) -> None:
    """Raises NothingLearned, with the most frequent reason, where no round had a client's contribution."""
    if not federation.telemetry.nothing_learned:
        return
    if not federation.telemetry.history:
        raise NothingLearned(
            "privacy.target_epsilon: is less than the first round alone would cost; nothing was trained. Use a larger "
            "privacy.noise_multiplier, or leave it out, and it is found for the target"
        )
    failures, rounds = federation.telemetry.failures, len(federation.telemetry.history)
    reason, count = max(failures.items(), key=lambda item: item[1], default=("none was sampled", 0))
    raise NothingLearned(
        f"every client failed in every round, so training stopped after round {rounds}; the warnings above say why: "
        f"{count} x {reason}"
    )


def _tensorboard_command(runs: Path) -> str:
    """As it works in the user's shell: by its path where the environment is not activated (make train)."""
    activated = sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix
    program = "tensorboard" if activated else os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    return f"{program} --logdir {runs}"


def summary_of(prepared: Prepared, experiment: Experiment, sha256: str) -> Metrics:
    """``summary.json`` of a run that went through."""
    promise = experiment.federation.budget.guarantee
    return experiment.federation.telemetry.summary(
        **({"privacy": promise.text() + caveat(prepared.config)} if promise else {}),
        model_sha256=sha256,
        num_parameters=prepared.spec.num_trainable,
        world_size=prepared.place.world_size,
        num_clients=prepared.data.num_clients,
    )


def _interrupted(experiment: Experiment, request: Interrupted) -> int:
    """Write the last finished round if it is not written, and say how to go on."""
    try:
        written = experiment.federation.checkpoints.flush(patience=3.0)
    except WriteError as error:
        log.warning("%s: %s", request, error)
        written = experiment.federation.checkpoints.written
    experiment.federation.telemetry.close(None)
    if experiment.folder:
        experiment.folder.ended(request, round=written)
        log.warning("%s: stopped after round %d; go on with --run.resume=auto", request, written)
    return INTERRUPTED


def _say(text: str, place: Place) -> int:
    if place.rank == 0:
        print(text, flush=True)
    return DONE


def _usage(message: str, place: Place) -> int:
    """One line from one rank: the others give it time to speak before their exit ends it, or its exit ends them.

    Rank 0 speaks at once, the first rank of another machine 4 s later, any other rank, whose own mistake it must be (a
    key that is not its own), 2 s after that.
    """
    if place.rank == 0:
        log.error("%s", message)
        return USAGE
    try:
        for _ in range(60 if place.local_rank else 40):
            interrupt.check()
            time.sleep(0.1)
        log.error("%s", message)
    except Interrupted:
        pass
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
