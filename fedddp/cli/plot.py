"""Draw one metric of runs from their ``metrics.jsonl``; runs that differ in their seed only are one curve."""

import json
import logging
import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config import flatten, read_toml
from ..errors import UsageError
from ..telemetry import Metrics, figures, primary

log = logging.getLogger("fedddp")

AXES = {"rounds": "round", "bytes": "bytes sent per rank", "seconds": "seconds", "epsilon": "epsilon"}
"""Choices of --x, and the label of the axis."""
ASIDE = ("run.name", "run.dir", "run.resume", "run.device", "run.threads", "telemetry.", "checkpoint.")
"""Keys in which runs of one curve may differ, besides ``run.seed``."""
Points = list[tuple[float, ...]]


def run(args: Namespace) -> None:
    """Draw what ``args`` ask for; see `fedddp.cli.options.plot`."""
    histories = {run: _history(run) for run in args.runs}
    key = _key(args.metric, histories)
    found = {run: _points(history, key, args.x, args.smooth) for run, history in histories.items()}
    for run in (run for run, points in found.items() if not points):
        log.warning("%s: has no round with %s; it is left out", run, f"{_words(key)} and {AXES[args.x]}")
    runs = [run for run, points in found.items() if points]
    if not runs:
        raise UsageError(f"--x={args.x}: no run has {AXES[args.x]} beside {_words(key)}; leave --x out")
    curves = {label: _mean([found[run] for run in group]) for label, group in _labelled(runs).items()}
    if apart := [label for label, points in curves.items() if not points]:
        raise UsageError(f"{apart[0]}: they have no round in common; draw them apart, or leave some out")
    metric = key.removeprefix("test_").removeprefix("train_")
    y = "" if key.startswith("test_") else _words(key)
    draw = partial(figures.curves, curves, args.target, metric, x=AXES[args.x], y=y)
    column, wide = args.out.with_suffix(".pdf"), args.out.suffix.lower() != ".pdf"
    try:
        if wide:
            figures.save(draw(), args.out)
        figures.save(draw(column=True), column)
    except ValueError as error:
        raise UsageError(f"--out={error}") from None
    print(f"drawn in {args.out}" + (f", and for one column of a paper in {column}" if wide else ""))


def _key(metric: str | None, histories: Mapping[Path, Sequence[Metrics]]) -> str:
    """The entry of ``metrics.jsonl`` that is drawn. Raises UsageError if no run has it."""
    if metric:
        lines = [m for history in histories.values() for m in history]
        entries = {key for m in lines for key, value in m.items() if isinstance(value, int | float)}
        known = dict.fromkeys(name for history in histories.values() for name in _known(history))
        found = next((key for key in (f"test_{metric}", metric) if key in entries), None)
        if found is None:
            raise UsageError(f"--metric={metric}: no run has it; there are {', '.join(known)}")
        return found
    evaluated = {str(run): history for run, history in histories.items() if _known(history)}
    if not evaluated:
        raise UsageError("none of the runs was evaluated; give a run folder with an evaluated round")
    return f"test_{_common(evaluated)}"


def _points(history: Sequence[Metrics], key: str, x: str, smooth: int) -> dict[int, tuple[float, float]]:
    """Round -> (x, value) where both are known; a value is the mean of the last ``smooth``."""
    at = {
        "rounds": [m["round"] for m in history],
        "bytes": _total(history, "bytes_sent"),
        "seconds": _total(history, "seconds"),
        "epsilon": [m.get("epsilon") for m in history],
    }[x]
    known = [(m["round"], a, m[key]) for m, a in zip(history, at, strict=True) if None not in (a, m.get(key))]
    values = [value for _, _, value in known]
    means = [statistics.fmean(values[max(0, i + 1 - smooth) : i + 1]) for i in range(len(values))]
    return {t: (a, mean) for (t, a, _), mean in zip(known, means, strict=True)}


def _total(history: Sequence[Metrics], key: str) -> Sequence[float | None]:
    """The sum up to each round; None in all if no round has any."""
    values = [m.get(key) or 0.0 for m in history]
    return list(accumulate(values)) if any(values) else [None] * len(values)


def _mean(found: Sequence[Mapping[int, tuple[float, float]]]) -> Points:
    """The mean over runs of the rounds that all of them have, with the sample deviation of several."""
    if len(found) == 1:
        return list(found[0].values())
    mean: Points = []
    for t in sorted(set.intersection(*map(set, found))):
        at, values = zip(*(run[t] for run in found), strict=True)
        mean.append((statistics.fmean(at), statistics.fmean(values), statistics.stdev(values)))
    return mean


def _labelled(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs by the label of their curve: the keys in which curves differ, or names where there are none or many."""
    groups: dict[str, list[Path]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = _configuration(run)
        key = repr(sorted(config.items())) if config else str(run)
        groups.setdefault(key, []).append(run)
        configs[key] = config
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differ = [key for key in keys if len({repr(config.get(key)) for config in configs.values()}) > 1]
    labels = [", ".join(_setting(key, config[key]) for key in differ if key in config) for config in configs.values()]
    if not (all(labels) and len(set(labels)) == len(labels) and len(differ) <= 3):
        alone = [len([run for run in runs if run.name == group[0].name]) == 1 for group in groups.values()]
        labels = [group[0].name if one else str(group[0]) for group, one in zip(groups.values(), alone, strict=True)]
    several = [f" ({len(group)} runs)" if len(group) > 1 else "" for group in groups.values()]
    return {label + many: group for label, many, group in zip(labels, several, groups.values(), strict=True)}


def _words(key: str) -> str:
    return key.replace("_", " ")


def _setting(key: str, value: object) -> str:
    return str(value) if key.endswith(".name") else f"{key.rpartition('.')[2]}={value}"


def _configuration(run: Path) -> dict[str, Any]:
    """The keys that make a run's curve; empty where its configuration cannot be read."""
    try:
        keys = flatten(read_toml(run / "config.toml"))
    except UsageError:
        return {}
    return {k: v for k, v in keys.items() if k != "run.seed" and not k.startswith(ASIDE)}


def _common(histories: Mapping[str, Sequence[Metrics]]) -> str:
    """The primary metric that all runs have. Raises UsageError where they differ."""
    found = {Path(name).name: primary(history).removeprefix("test_") for name, history in histories.items()}
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
