"""Draw the accuracy curves of runs, from their ``metrics.jsonl``.

fedddp plot runs/fedavg runs/fedavg_e5 [--target=0.99] [--out=curves.png]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..registry.choice import user_path
from ..telemetry import figures, lasting_output


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage)."""
    parser = argparse.ArgumentParser(prog="fedddp plot", description="accuracy curves of runs")
    parser.add_argument("runs", nargs="+", type=user_path, help="run folders")
    parser.add_argument("--target", type=float, help="draw a line at this accuracy")
    parser.add_argument("--out", type=user_path, default=Path("curves.png"), help="PNG, PDF or SVG [curves.png]")
    args = parser.parse_args(argv)
    curves = {}
    for run in args.runs:
        if points := _points(run, parser):
            curves[run.name if [other.name for other in args.runs].count(run.name) == 1 else str(run)] = points
        else:
            print(f"{run}: has no round with a test accuracy; left out", file=sys.stderr)
    if not curves:
        parser.error("none of the runs has a test accuracy; give a run folder of a classifier that was evaluated")
    try:
        figures.save(figures.curves(curves, args.target), args.out)
    except ValueError as error:
        parser.error(f"--out={error}")
    print(f"drawn in {args.out}")
    return 0


def _points(run: Path, parser: argparse.ArgumentParser) -> list[tuple[int, float]]:
    """(round, test accuracy) of the evaluated rounds of a run folder, without a last line that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        parser.error(f"{run}: is not a run folder ({getattr(error, 'strerror', None) or error})")
    points = []
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line)
            points.append((metrics["round"], metrics["test_accuracy"]))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                parser.error(f"{run}/metrics.jsonl: line {number} is damaged; remove it, or train the run again")
    return [(t, accuracy) for t, accuracy in points if accuracy is not None]


if __name__ == "__main__":
    sys.exit(main())
