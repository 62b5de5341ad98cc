"""What a report has of a run, section by section. What cannot be made is left out, with the reason in a sentence."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from ...config import UsageError, nested
from ...errors import OWN_CODE, reason
from ...telemetry import figures
from .again import scored
from .compare import Group, against_first, differing, groups, level
from .drawings import MOST_LINES, Drawing, curves, distribution, drawing, lines, owners
from .page import Texts, number
from .runs import Run


@dataclass(frozen=True)
class Part:
    """A figure, or the sentence that stands in its place."""

    drawn: Drawing | None = None
    missing: str = ""


def single(run: Run, t: Texts) -> dict[str, Any]:
    """What the template shows of one run."""
    confusion, mistakes = _again(run, t)
    return {
        "run": run,
        "name": _metric(run, t),
        "curves": _curves(run, t),
        "owners": _tried(lambda: _owners(run, t), t),
        "spreads": _spreads(run),
        "clients": _tried(lambda: _clients(run, t), t),
        "confusion": confusion,
        "mistakes": mistakes,
        "privacy": _privacy(run),
        "toml": tomli_w.dumps(nested({k: v for k, (v, _) in run.changed.items()} | {"run.name": run.name})),
    }


def several(runs: Sequence[Run], t: Texts) -> dict[str, Any]:
    """What the template shows of several runs."""
    compared = groups(runs)
    one = len({run.primary for run in runs}) == 1
    reached = level(runs) if one else None
    return {
        "runs": runs,
        "groups": compared,
        "name": _metric(runs[0], t) if one else "",
        "level": reached,
        "rounds_to": {str(run.folder): None if reached is None else run.rounds_to(reached) for run in runs},
        "differing": differing(runs),
        "curves": _tried(lambda: _together(compared, reached, t), t) if one else Part(missing=t("several_metrics")),
        "differences": against_first(compared) if one and len(compared) > 1 else [],
    }


def _metric(run: Run, t: Texts) -> str:
    return t("test") + " " + run.primary.removeprefix("test_").replace("_", " ")


def _tried(make: Callable[[], Part], t: Texts) -> Part:
    """What ``make`` gives, or that it failed: a report does not end by a figure."""
    try:
        return make()
    except OWN_CODE as error:
        return Part(missing=t("left_out", reason=reason(error)))


def _curves(run: Run, t: Texts) -> list[Part]:
    """The metric that is shown first, the losses, and epsilon."""
    losses = {"train": run.points("train_loss"), "test": run.points("test_loss")}
    losses = {name: points for name, points in losses.items() if points}
    epsilon = run.points("epsilon")
    metric = run.primary.removeprefix("test_")
    return [
        _tried(lambda: _curve(run, metric, t), t),
        *([_tried(lambda: _lines(losses, t("loss"), t), t)] if losses else []),
        *([_tried(lambda: _lines({"epsilon": epsilon}, "epsilon", t), t)] if epsilon else []),
    ]


def _curve(run: Run, metric: str, t: Texts) -> Part:
    points = run.points(run.primary)
    if not points or run.best is None:
        return Part(missing=t("not_evaluated"))
    (first, start), (last, end), (best, value) = points[0], points[-1], run.best
    ends = {"first": first, "start": number(start), "last": last, "end": number(end)}
    alt = t("alt_curve", metric=metric, **ends, best=best, value=number(value))
    return Part(drawing(curves({run.name: points}, metric), alt))


def _lines(found: Mapping[str, Sequence[tuple[int, float]]], up: str, t: Texts) -> Part:
    ends = "; ".join(
        f"{name}: {number(points[0][1])} \N{RIGHTWARDS ARROW} {number(points[-1][1])}" for name, points in found.items()
    )
    return Part(drawing(lines(found, "round", up), t("alt_lines", what=up, ends=ends)))


def _together(compared: Sequence[Group], target: float | None, t: Texts) -> Part:
    key = compared[0].runs[0].primary
    found = {group.name: points for group in compared[:MOST_LINES] if (points := group.curve(key))}
    if not found:
        return Part(missing=t("not_evaluated"))
    ends = "; ".join(f"{name}: {number(points[-1][1])}" for name, points in found.items())
    return Part(drawing(curves(found, key.removeprefix("test_"), target), t("alt_together", ends=ends)))


def _owners(run: Run, t: Texts) -> Part:
    if not run.clients:
        return Part(missing=t("no_clients_file"))
    population = int(run.summary.get("num_clients") or len(run.clients))
    sizes = [int(row["examples"]) for row in run.clients]
    figures = {"least": min(sizes), "median": int(statistics.median(sizes)), "most": max(sizes)}
    return Part(drawing(owners(run.clients, population), t("alt_owners", clients=population, **figures)))


def _columns(run: Run) -> dict[str, list[float]]:
    """What is known of each client: scores of its own and of the global model, else its last training loss."""
    names = [c for c in (run.clients[0] if run.clients else ()) if c.startswith(("personal_", "global_"))] or ["loss"]
    found = {name: [float(v) for row in run.clients if (v := row.get(name))] for name in names}
    finite = {name: [v for v in values if math.isfinite(v)] for name, values in found.items()}
    return {name: values for name, values in finite.items() if values}


def _spreads(run: Run) -> list[dict[str, Any]]:
    """Mean, worst tenth and spread over clients: of ``clients.csv``, else of the last scores in the metrics."""
    found = []
    for name, values in _columns(run).items():
        ordered = sorted(values, reverse=not name.endswith("accuracy"))  # the worst first
        worst = statistics.fmean(ordered[: -(-len(values) // 10)])
        spread = {"mean": statistics.fmean(values), "worst": worst, "std": statistics.pstdev(values)}
        found.append({"name": name, "n": len(values), **spread, "least": min(values), "most": max(values)})
    if found:
        return found
    last = next((m for m in reversed(run.history) if "personal_clients" in m), {})
    names = [key.removesuffix("_mean") for key in last if key.endswith("_mean")]
    parts = {"mean": "mean", "worst": "worst10", "std": "std"}
    return [
        {
            "name": name,
            "n": last["personal_clients"],
            **{part: last.get(f"{name}_{key}") for part, key in parts.items()},
        }
        for name in names
    ]


def _clients(run: Run, t: Texts) -> Part:
    columns = _columns(run)
    if not columns:
        return Part(missing=t("no_distribution"))
    ends = "; ".join(f"{name}: {number(min(values))} - {number(max(values))}" for name, values in columns.items())
    measured = next(iter(columns)).rpartition("_")[2]
    return Part(drawing(distribution(columns, measured), t("alt_distribution", ends=ends)))


def _again(run: Run, t: Texts) -> tuple[Part, Part]:
    """The confusion matrix and the worst mistakes, scored again."""
    try:
        score, round = scored(run.folder)
    except UsageError as error:
        missing = Part(missing=t("left_out", reason=str(error)))
        return missing, missing
    confusion = _tried(lambda: _confusion(score, round, t), t)
    return confusion, _tried(lambda: _mistakes(score, round, t), t)


def _confusion(score: Any, round: int, t: Texts) -> Part:
    if not score.confusion.numel():
        return Part(missing=t("many_classes"))
    wrong = score.confusion.clone()
    wrong.fill_diagonal_(0)
    true, taken = divmod(int(wrong.argmax()), len(wrong))
    values = {"n": int(wrong.max()), "of": int(score.confusion[true].sum()), "true": true, "taken": taken}
    alt = t("alt_confusion", round=round, accuracy=number(score.accuracy), **values)
    return Part(drawing(figures.confusion(score, round), alt))


def _mistakes(score: Any, round: int, t: Texts) -> Part:
    worst = score.mistakes
    if worst and not figures.is_picture(worst[0].image):
        return Part(missing=t("no_pictures"))
    said = "; ".join(t("mistake", true=m.label, taken=m.predicted, loss=number(m.loss)) for m in worst[:16])
    return Part(drawing(figures.mistakes(worst, round), t("alt_mistakes", round=round, mistakes=said or "-")))


def _privacy(run: Run) -> dict[str, Any]:
    """The level, epsilon with its terms, and whether single updates were masked."""
    last = next((m for m in reversed(run.history) if "epsilon" in m), {})
    return {
        "level": run.keys.get("privacy.level", "none"),
        "masked": bool(run.keys.get("privacy.secure_aggregation.enabled")),
        "spent": bool(last),
        "epsilon": last.get("epsilon"),
        "terms": last.get("epsilon_terms", ""),
        "by_delta": run.summary.get("epsilon_by_delta") or {},
        "statement": run.summary.get("privacy", ""),
    }
