"""Draw the accuracy curves of runs, from their ``metrics.jsonl``.

python -m fedddp.plot runs/fedavg runs/fedavg_e5 [--target=0.99] [--out=curves.png]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .telemetry import figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage)."""
    parser = argparse.ArgumentParser(prog="python -m fedddp.plot", description="accuracy curves of runs")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--target", type=float, help="draw a line at this accuracy")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="PNG, PDF or SVG [curves.png]")
    args = parser.parse_args(argv)
    curves = {}
    for run in args.runs:
        try:
            lines = (run / "metrics.jsonl").read_text().splitlines()
        except OSError as error:
            parser.error(f"{run}: is not a run folder ({error.strerror})")
        metrics = [json.loads(line) for line in lines]
        curves[run.name] = [(m["round"], m["test_accuracy"]) for m in metrics if m["test_accuracy"] is not None]
    try:
        figures.curves(curves, args.target).savefig(args.out, dpi=120)
    except (OSError, ValueError) as error:
        parser.error(f"--out={args.out}: cannot be written ({error})")
    print(f"drawn in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
