"""Draw the accuracy curves of runs, from their ``metrics.jsonl``."""

import json
import logging
from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from ..telemetry import figures

log = logging.getLogger("fedddp")


def run(args: Namespace) -> None:
    """Draw what ``args`` ask for; see `fedddp.cli.options.plot`."""
    curves = {}
    for run in args.runs:
        if points := _points(run):
            curves[run.name if [other.name for other in args.runs].count(run.name) == 1 else str(run)] = points
        else:
            log.warning("%s: has no round with a test accuracy; it is left out", run)
    if not curves:
        raise UsageError("none of the runs has a test accuracy; give a run folder of a classifier that was evaluated")
    try:
        figures.save(figures.curves(curves, args.target), args.out)
    except ValueError as error:
        raise UsageError(f"--out={error}") from None
    print(f"drawn in {args.out}")


def _points(run: Path) -> list[tuple[int, float]]:
    """(round, test accuracy) of the evaluated rounds of a run folder, without a last line that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{run}: is not a run folder ({getattr(error, 'strerror', None) or error})") from None
    points = []
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line)
            points.append((metrics["round"], metrics["test_accuracy"]))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UsageError(
                    f"{run}/metrics.jsonl: line {number} is damaged; remove it, or train the run again"
                ) from None
    return [(t, accuracy) for t, accuracy in points if accuracy is not None]
