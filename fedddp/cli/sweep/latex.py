"""The results of a sweep as a LaTeX table, with the package booktabs."""

from collections.abc import Sequence

from ...tasks.metrics import FRACTIONS, LOWER
from .grid import Sweep
from .table import TableRow, metric_name, value, words

ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def as_latex(sweep: Sweep, table: Sequence[TableRow]) -> str:
    """Mean and deviation of the final value. Two axes are crossed: the first one down, the second across.

    Bold is the best of the rows that share their first label, as they share a panel of the picture; with one axis, of
    all.
    """
    crossed, several = len(sweep.shown) == 2, len(sweep.shown) > 1
    best: dict[str, float] = {}
    for row in table:
        if (quality := _quality(row)) is not None:
            setting = row.labels[0] if several else ""
            best[setting] = max(quality, best.get(setting, quality))
    cells = {row.labels: _cell(row, best.get(row.labels[0] if several else "")) for row in table}
    across = list(dict.fromkeys(labels[1] for labels in cells)) if crossed else [f"final {words(table[0].key)}"]
    if crossed:
        downs = dict.fromkeys(labels[0] for labels in cells)
        lines = [[_text(down), *(cells.get((down, label), "--") for label in across)] for down in downs]
    else:
        lines = [[*map(_text, labels), cell] for labels, cell in cells.items()]
    heads = [*sweep.shown[: len(lines[0]) - len(across)], *across]
    unit = " in percent" if metric_name(table[0].key) in FRACTIONS else ""
    rows = [r"\toprule", " & ".join(map(_text, heads)) + r" \\", r"\midrule", *(" & ".join(x) + r" \\" for x in lines)]
    columns = "l" * (len(heads) - len(across)) + "r" * len(across)
    return "\n".join(
        [
            f"% final {words(table[0].key)}{unit}, mean and sample standard deviation, best in bold; needs booktabs",
            rf"\begin{{tabular}}{{{columns}}}",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _quality(row: TableRow) -> float | None:
    mean = row.mean(f"final_{row.key}")
    return None if mean is None else -mean.mean if metric_name(row.key) in LOWER else mean.mean


def _cell(row: TableRow, best: float | None) -> str:
    if (quality := _quality(row)) is None:
        return "--"
    number = value(row, "final").replace("±", r"\pm")
    return rf"$\mathbf{{{number}}}$" if quality == best else f"${number}$"


def _text(label: str) -> str:
    return "".join(ESCAPED.get(c, c) for c in label)
