"""Draw the result of a run in a notebook: a table and a small curve, as HTML, and figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from ..errors import UsageError
from ..evaluation.server import Score
from . import figures
from .beside import SideWork
from .progress import value_text
from .telemetry import Metrics, primary


def curve(name: str, history: Sequence[Metrics], *, small: bool = False) -> Figure:
    """Draw the metric shown first over the rounds. Raises UsageError if no round was evaluated."""
    key = primary(history)
    points = [(float(m["round"]), m[key]) for m in history if m.get(key) is not None]
    if not points:
        raise UsageError("plot: no round was evaluated, so there is no curve; set evaluate.every")
    return figures.curves({name: points}, None, key.removeprefix("test_"), column=small)


def confusion(score: Score | None, round: int) -> Figure:
    """Draw the confusion matrix of the last evaluation. Raises UsageError where there is none."""
    if score is None or not len(score.confusion):
        raise UsageError(
            "confusion: there is no confusion matrix: nothing was evaluated by this call on this rank, or the task has "
            "no classes, or too many"
        )
    return figures.confusion(score, round)


def html(name: str, summary: Metrics, history: Sequence[Metrics]) -> str:
    """Return a summary as an HTML table, without what has no value, beside a small curve if there is one."""
    rows = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{escape(value_text(value))}</td></tr>"
        for key, value in summary.items()
        if value is not None and not key.endswith("sha256")
    )
    picture = ""
    if any(m.get(primary(history)) is not None for m in history):
        with SideWork()("curve"):
            drawn = io.BytesIO()
            curve(name, history, small=True).savefig(drawn, format="png", dpi=130)
            data = base64.b64encode(drawn.getvalue()).decode()
            about = f"{primary(history).replace('_', ' ')} by round"
            picture = f'<img src="data:image/png;base64,{data}" alt="{escape(about)}">'
    caption = f"<caption>{escape(name)}</caption>"
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em"><table>{caption}{rows}</table>{picture}</div>'
