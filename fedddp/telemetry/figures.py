"""Draw the figures of a run with matplotlib; no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..data import Excerpt
from ..evaluation.server import Mistake, Score
from ..tasks.metrics import FRACTIONS, LOWER

DPI = 150
"""Of pictures that are small, so that their text can be read on a card, and sharp."""
BLUE, ORANGE = "#0072B2", "#E69F00"
"""Colours of Okabe and Ito, which the colour-blind tell apart."""


def line_style(number: int) -> str:
    """The style of the line with this number, so that lines differ without colours."""
    return ("-", "--", ":", "-.")[number % 4]


def is_picture(x: Tensor) -> bool:
    """Whether an input is a grey or a coloured picture, [1, H, W] or [3, H, W]."""
    return x.dim() == 3 and x.shape[0] in (1, 3)


def save(drawn: Figure | np.ndarray, path: Path, dpi: int = 120) -> None:
    """Write a figure, or pixels [height, width, 3], in the format of the suffix of ``path``. Raises ValueError."""
    ending = path.suffix[1:].lower() or "png"
    try:
        if isinstance(drawn, Figure):
            drawn.savefig(path, dpi=dpi, format=ending)
        else:
            imsave(path, drawn, format=ending)
        return
    except KeyError:  # of PIL
        reason = f"Format {ending!r} is not supported"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
    raise ValueError(f"{path}: cannot be written ({reason}); name a .png file in a folder that exists")


def partition(owners: Excerpt) -> Figure:
    """Clients x labels: a bubble whose area is the number of examples, and above it the examples of each client."""
    rows, counts, num_clients = owners.clients, owners.counts, owners.num_clients
    labels = counts.shape[1] if owners.by_label else 0  # else labels stay on each rank
    figure = Figure(figsize=(5, 1.7 + 0.2 * min(labels, 24)), dpi=DPI, layout="constrained")
    if owners.by_label:
        sizes, bubbles = figure.subplots(2, 1, height_ratios=(1, 0.5 + 0.2 * min(labels, 24)), sharex=True)
        cell = min(260 / max(len(rows), 4), 12 * min(1.0, 24 / labels))  # points that a bubble may be wide
        who, label = np.nonzero(counts)
        owned = counts[who, label]
        bubbles.scatter(who, label, s=cell**2 * owned / max(1, counts.max()), color=BLUE, linewidths=0)
        bubbles.set(ylabel="label", ylim=(-0.7, labels - 0.3))
        bubbles.yaxis.set_major_locator(MaxNLocator(12, integer=True))
        bubbles.grid(alpha=0.25)
        bubbles.set_axisbelow(True)
    else:
        sizes = bubbles = figure.subplots()
    ticks = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 12)).astype(int))
    bubbles.set_xticks(ticks, [str(rows[t]) for t in ticks])
    bubbles.set(xlabel="client", xlim=(-0.7, len(rows) - 0.3))
    sizes.bar(range(len(rows)), counts.sum(axis=1), width=1.0 if len(rows) > 30 else 0.7, color=ORANGE)
    sizes.set(ylabel="examples")
    some = f", {len(rows)} of them shown" if len(rows) < num_clients else ""
    most = f"\nlargest bubble: {counts.max()} examples" if owners.by_label else ""
    figure.suptitle(f"who owns what: {num_clients} clients{some}{most}", size=11)
    return figure


def classes(found: Mapping[int, Tensor]) -> Figure:
    """Accuracy of each class in each evaluated round (round -> [C])."""
    table = np.stack([row.numpy() for row in found.values()], axis=1)  # [C, T]
    figure, axes = _over_rounds(found, len(table))
    image = axes.imshow(table, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="test accuracy")
    axes.set(ylabel="class", title="accuracy of each class")
    axes.yaxis.set_major_locator(MaxNLocator(12, integer=True))
    return figure


def took_part(owners: Excerpt, found: Mapping[int, Mapping[int, bool]]) -> Figure:
    """Which clients of ``owners`` trained in which round, and which failed (round -> client -> success)."""
    at = {client: row for row, client in enumerate(owners.clients.tolist())}
    table = np.zeros((len(at), len(found)))
    for column, cohort in enumerate(found.values()):
        for client, succeeded in cohort.items():
            table[at[client], column] = 1 if succeeded else 2
    figure, axes = _over_rounds(found, len(at))
    axes.imshow(table, aspect="auto", cmap=ListedColormap(["white", BLUE, ORANGE]), interpolation="nearest", vmax=2)
    ticks = np.unique(np.linspace(0, len(at) - 1, min(len(at), 12)).astype(int))
    axes.set_yticks(ticks, [str(owners.clients[t]) for t in ticks])
    failed = ", failed (orange)" if (table == 2).any() else ""
    some = f", {len(at)} of {owners.num_clients} clients" if len(at) < owners.num_clients else ""
    axes.set(ylabel="client", title=f"who took part (blue){failed}{some}")
    return figure


def _over_rounds(found: Mapping[int, object], rows: int) -> tuple[Figure, Axes]:
    """A figure with a column a round of ``found``."""
    figure = Figure(figsize=(5, 1.6 + 0.16 * min(rows, 18)), dpi=DPI, layout="constrained")
    axes, rounds = figure.subplots(), list(found)
    ticks = np.unique(np.linspace(0, len(rounds) - 1, min(len(rounds), 10)).astype(int))
    axes.set_xticks(ticks, [str(rounds[t]) for t in ticks])
    axes.set(xlabel="round")
    return figure, axes


def images(shown: Mapping[int, Tensor]) -> Figure:
    """A row of images [n, C, H, W] for each client, on one scale. Raises ValueError for inputs that are no pictures."""
    for own in shown.values():
        if len(own) and not is_picture(own[0]):
            raise ValueError(f"inputs of shape {list(own.shape[1:])} are not pictures ([1, H, W] or [3, H, W])")
    most, (channels, height, width) = max(map(len, shown.values())), next(iter(shown.values())).shape[1:]
    tiles = np.full((len(shown), most, height + 1, width + 1, channels), np.nan)  # with an empty line between them
    for row, own in zip(tiles, shown.values(), strict=True):
        row[: len(own), 1:, 1:] = own.permute(0, 2, 3, 1).numpy()
    darkest, brightest = np.nanpercentile(tiles, (1, 99))
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(len(shown) * (height + 1), most * (width + 1), channels)
    sheet = (sheet.clip(darkest, brightest) - darkest) / max(brightest - darkest, 1e-9)
    sheet = (7 * sheet).round() / 7  # noise does not compress: eight shades make a smaller file
    figure = Figure(figsize=(0.4 * most + 0.5, 0.4 * len(shown) + 0.1), layout="constrained")
    axes = figure.subplots()
    sheet = np.nan_to_num(sheet if channels == 3 else sheet[..., 0], nan=1.0)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], ylabel="client")
    axes.set_yticks([(i + 0.5) * (height + 1) for i in range(len(shown))], [str(client) for client in shown])
    return figure


def confusion(score: Score, round: int) -> Figure:
    """Confusion matrix: counts on a logarithmic colour scale, and percentages of each true label."""
    counts = score.confusion.numpy()
    classes = len(counts)
    figure = Figure(figsize=(5.2, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_equal(counts, 0), cmap="Blues", norm=LogNorm(vmin=1, vmax=max(2, counts.max())))
    figure.colorbar(image, ax=axes, label="test examples")
    axes.set(xlabel="predicted", ylabel="true", title=f"round {round}: test accuracy {score.accuracy or 0:.4f}")
    if classes <= 12:
        axes.set(xticks=range(classes), yticks=range(classes))
        percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            count = counts[true, predicted]
            brightness = np.dot(image.cmap(image.norm(count))[:3], (0.299, 0.587, 0.114))  # as an eye sees it
            text, colour = f"{int(count)}\n{percent[true, predicted]:.0f}%", "white" if brightness < 0.5 else "black"
            axes.text(predicted, true, text, ha="center", va="center", color=colour, size=6)
    return figure


def mistakes(worst: Sequence[Mistake], round: int) -> Figure:
    """The test examples with the largest loss among the misclassified, at most 16."""
    figure = Figure(figsize=(5, 5.6), dpi=DPI, layout="constrained")
    for number, mistake in enumerate(worst, start=1):
        axes = figure.add_subplot(4, 4, number)
        axes.imshow(_pixels(mistake.image), cmap="gray")
        axes.set_title(f"{mistake.label} taken for {mistake.predicted}\nloss {mistake.loss:.1f}", size=8)
        axes.axis("off")
    figure.suptitle(f"round {round}: worst mistakes" if worst else f"round {round}: no mistake")
    return figure


def _pixels(image: Tensor) -> np.ndarray:
    """[H, W], or [H, W, 3] in [0, 1]: of 255 as bytes are, else from the smallest value to the largest."""
    if len(image) == 1:
        return image[0].float().numpy()
    x = image.float().permute(1, 2, 0)
    x = x / 255 if image.dtype == torch.uint8 else (x - x.min()) / (x.max() - x.min()).clamp(min=1e-9)
    return x.numpy()


def grid(images: Tensor, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Images in [0, 1], [rows, columns, C, H, W], side by side on black: uint8 [height, width, 3]."""
    rgb = images.expand(-1, -1, 3, -1, -1) if images.shape[2] == 1 else images  # [rows, columns, 3, H, W]
    framed = torch.nn.functional.pad(rgb, (0, gap, 0, gap))
    page = framed.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [rows (H + gap), columns (W + gap), 3]
    page = page.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
    return (255 * page).round().to(torch.uint8).numpy()


COLUMN = 3.4
"""Inches that a column of a paper is wide."""


def curves(
    found: Mapping[str, Sequence[tuple[float, ...]]],
    target: float | None,
    metric: str = "accuracy",
    *,
    x: str = "round",
    y: str = "",
    column: bool = False,
) -> Figure:
    """A metric by round or any other ``x``, one line per name; see `limits`.

    Points are (x, value), or (x, mean, deviation) with a band of that deviation. ``y``: the label of the values
    (default: a metric of the test set). ``column``: for one column of a paper.
    """
    with rc_context({"font.size": 8, "legend.fontsize": 7} if column else {}):
        below = -(-len(found) // 2) if len(found) > (5 if column else 12) else 0  # lines of a legend outside
        size = (COLUMN, 2.4 + 0.3 * below) if column else (8, 4.5 + 0.2 * below)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for number, (name, points) in enumerate(found.items()):
            at, values = ([point[i] for point in points] for i in (0, 1))
            style = line_style(number if column else number // 10)
            marker = "." if len(points) < 30 and not column else ""
            axes.plot(at, values, style, marker=marker, label=name, color=f"C{number % 10}", linewidth=1.2)
            if len(points[0]) > 2:
                low, high = ([p[1] + sign * p[2] for p in points] for sign in (-1, 1))
                axes.fill_between(at, low, high, color=f"C{number % 10}", alpha=0.2, linewidth=0)
        axes.set(xlabel=x, ylabel=y or label(metric))
        axes.set_ylim(*limits(metric, [[point[1] for point in points] for points in found.values()], target))
        if target is not None:
            axes.axhline(target, color="grey", linestyle="--", linewidth=1)
            side = "top" if target > sum(axes.get_ylim()) / 2 else "bottom"  # within the axes
            axes.annotate(f"{target:g}", (0.99, target), xycoords=("axes fraction", "data"), ha="right", va=side)
        if x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if below:
            figure.legend(loc="outside lower center", ncols=2)
        else:
            axes.legend().set_in_layout(False)
        figure.draw_without_rendering()  # with these sizes of letters
    return figure


def label(metric: str) -> str:
    """The label of an axis that shows ``metric`` of the test set."""
    return f"test {metric.replace('_', ' ')}" + (", lower is better" if metric in LOWER else "")


def limits(metric: str, found: Sequence[Sequence[float]], target: float | None) -> tuple[float, float]:
    """The ends of an axis that shows ``found``, the values of each run, and ``target``.

    Of a fraction it begins a quarter below the best value, or lower, so that half of every run's points can be seen. Of
    any other metric it reaches twice as far from the best value as three quarters of every run's points do: a run often
    begins far off.
    """
    marks = [] if target is None else [target]
    if metric in FRACTIONS:
        best = max(value for values in (*found, marks) for value in values)
        lowest = min([best - 0.25, *(float(np.median(values)) - 0.02 for values in found), *(m - 0.02 for m in marks)])
        return max(-0.02, lowest), min(1.02, best + 0.02)
    sign = -1 if metric in LOWER else 1
    signed = [sign * np.asarray(values, dtype=np.float64) for values in found]  # more is better
    best, worst = max(values.max() for values in signed), min(values.min() for values in signed)
    near = min(float(np.quantile(values, 0.25)) for values in signed)
    ends = [best, max(worst, best - 2 * (best - near)), *(sign * mark for mark in marks)]
    margin = 0.05 * (max(ends) - min(ends)) or 0.05 * abs(best) or 0.05
    low, high = sorted(sign * end for end in (max(ends) + margin, min(ends) - margin))
    return low, high
