"""Draw the curves of runs, of one metric, from their ``metrics.jsonl``."""

import json
import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..telemetry import Metrics, figures, primary

log = logging.getLogger("fedddp")


def run(args: Namespace) -> None:
    """Draw what ``args`` ask for; see `fedddp.cli.options.plot`."""
    histories = {}
    for run in args.runs:
        history = _history(run)
        if _known(history):
            alone = [other.name for other in args.runs].count(run.name) == 1
            histories[run.name if alone else str(run)] = history
        else:
            log.warning("%s: has no round with an evaluation; it is left out", run)
    if not histories:
        raise UsageError("none of the runs was evaluated; give a run folder with an evaluated round")
    metric = args.metric or _common(histories)
    curves = {}
    for name, history in histories.items():
        if points := [(m["round"], value) for m in history if (value := m.get(f"test_{metric}")) is not None]:
            curves[name] = points
        else:
            log.warning("%s: has no round with a test %s; it is left out", name, metric)
    if not curves:
        known = dict.fromkeys(name for history in histories.values() for name in _known(history))
        raise UsageError(f"--metric={metric}: no run has it; there are {', '.join(known)}")
    try:
        figures.save(figures.curves(curves, args.target, metric), args.out)
    except ValueError as error:
        raise UsageError(f"--out={error}") from None
    print(f"drawn in {args.out}")


def _common(histories: dict[str, list[Metrics]]) -> str:
    """The primary metric that all runs have. Raises UsageError where they differ."""
    found = {name: primary(history).removeprefix("test_") for name, history in histories.items()}
    one, *others = dict.fromkeys(found.values())
    if others:
        told = ", ".join(f"{name} is measured by {metric}" for name, metric in found.items())
        known = [_known(history) for history in histories.values()]
        shared = [name for name in known[0] if all(name in names for names in known)]
        remedy = f"choose one that all have with --metric={' or '.join(shared)}, or draw them apart"
        raise UsageError(f"{told}; a picture shows one metric: {remedy}")
    return one


def _known(history: Sequence[Metrics]) -> list[str]:
    """The names of the test set's metrics that some round has."""
    found = (key for m in history for key, value in m.items() if key.startswith("test_") and value is not None)
    return [key.removeprefix("test_") for key in dict.fromkeys(found)]


def _history(run: Path) -> list[Metrics]:
    """The rounds of a run folder, without a last line that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{run}: is not a run folder ({getattr(error, 'strerror', None) or error})") from None
    history = []
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line)
            _ = metrics["round"], metrics["test_accuracy"]  # every line has them
            history.append(metrics)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UsageError(
                    f"{run}/metrics.jsonl: line {number} is damaged; remove it, or train the run again"
                ) from None
    return history
