"""Run a published table and print theirs, ours and the difference."""

import json
import tomllib
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ...comm.world import local_cores
from ...config import UsageError, merge, nested
from ...registry.shipped import located
from ...telemetry import console
from ...telemetry.environment import environment
from ..outcome import asked
from ..sweep import grid
from ..sweep.command import go, results
from ..sweep.grid import Sweep
from ..sweep.table import TableRow

PUBLISHED = Path(__file__).with_name("published.toml")
SCALE = {"percent": 100.0, "rounds": 1.0}
Line = dict[str, Any]


def run(args: Namespace) -> int:
    """Run the table that ``args`` name; see `fedddp.cli.options.reproduce`. The exit code: 1 if a run failed."""
    published = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[args.name]
    quick = published["quick"] if args.quick else {"keys": {}, "sweep": {}, "only": []}
    name = {"sweep": {"name": f"{args.name}-quick"}} if args.quick else {}
    request = asked(args)
    if request.files:
        raise UsageError(f"{request.files[0]}: the table's sweep is its only file; give keys")
    layers = [nested(quick["keys"]), {"sweep": quick["sweep"]}, name, request.overrides]
    over: dict[str, Any] = {}
    for layer in layers:
        over = merge(over, layer)
    sweep = grid.read(located(published["sweep"]), over)
    print(published["title"])
    if args.quick:
        print(f"QUICK: scaled down, so ours and theirs are not comparable: {quick['says']}.", flush=True)
    code = go(sweep, sweep.only(args.only or quick["only"]))
    lines = compared(published, results(sweep), comparable=not args.quick)
    _print(published, lines)
    _keep(sweep, published, lines, quick.get("says", ""))
    return code


def compared(published: Line, rows: Sequence[TableRow], *, comparable: bool) -> list[Line]:
    """A line for each published number: theirs, ours where it was run, and the difference where both say the same."""
    ours = {" / ".join(row.labels): _mean(row, published) for row in rows}
    lines = []
    for label, theirs in published["numbers"].items():
        own, runs = ours.get(label, (None, 0))
        difference = own - theirs if comparable and own is not None else None
        lines.append({"row": label, "theirs": theirs, "ours": own, "runs": runs, "difference": difference})
    return lines


def _mean(row: TableRow, published: Line) -> tuple[float | None, int]:
    """Our mean over seeds in their unit, and the number of runs; None before a run is done, or if it is not reached."""
    counts = published["entry"] == "rounds_to_target"
    mean = row.rounds_to_target if counts else row.mean(published["entry"])
    return (SCALE[published["unit"]] * mean.mean, mean.n) if mean else (None, len(row.done))


def _shown(line: Line) -> list[str]:
    ours = "-" if not line["runs"] else "not reached" if line["ours"] is None else f"{line['ours']:.4g}"
    difference = "-" if line["difference"] is None else f"{line['difference']:+.4g}"
    return [line["row"], f"{line['theirs']:g}", ours, difference, str(line["runs"])]


HEADS = ("row", "theirs", "ours", "difference", "runs")


def _print(published: Line, lines: Sequence[Line]) -> None:
    shown = Table(title=f"{published['entry'].replace('_', ' ')}, {published['unit']}")
    for head in HEADS:
        shown.add_column(head, justify="left" if head == "row" else "right")
    for line in lines:
        shown.add_row(*_shown(line))
    console().print(shown)
    print(f"Note: {published['remark']}")


def _keep(sweep: Sweep, published: Line, lines: Sequence[Line], says: str) -> None:
    """Write what was found, when, with which commit and on which machine."""
    config = sweep.runs[0].config
    device = torch.device("cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu")
    where = environment(device, sweep.settings.nproc, config.run.threads or local_cores()).splitlines()
    found = {
        "title": published["title"],
        "quick": says,
        "data": config.data.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": dict(line.split(": ", 1) for line in where),
        "lines": list(lines),
    }
    (sweep.folder / "reproduced.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = [HEADS, ("---", *["---:"] * 4), *map(_shown, lines)]
    text = [f"# {published['title']}", "", *([f"Scaled down, not comparable: {says}.", ""] if says else [])]
    text += ["".join(f"| {' | '.join(line)} |\n" for line in table), published["remark"], "", f"{found['date']}", ""]
    text += [f"- {line}" for line in where]
    (sweep.folder / "reproduced.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{sweep.folder}: reproduced.md, reproduced.json", flush=True)
