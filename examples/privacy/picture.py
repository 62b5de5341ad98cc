"""What the demonstration leaves behind: one figure for a lecture, the same as a TensorBoard page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from examples.privacy.rows import LEGIBLE, Findings, Row
from examples.privacy.scenarios import FEW, RANKS

LINE = 0.21
"""Height of a line of text, of a picture's."""
RED, GREEN = "#b3261e", "#1b6e3c"


def figure(found: Findings) -> Figure:
    """Originals above, reconstructions below, one row of pictures for each protection; read from the last bench."""
    picture = Figure(figsize=(16, 10), facecolor="white")
    left, right = np.asarray(picture.subfigures(1, 2, wspace=0.0))
    picture.text(0.5, 0.98, "What an update gives away of the digits behind it", ha="center", va="top", size=27)
    raw, chunk, masked, noised = (found[key] for key in ("raw", "chunk", "masked", "dp"))
    lines = [Line("the digits", raw.originals), *(Line.of(row) for row in (raw, chunk, masked, noised))]
    _column(left, f"one update: {RANKS} clients, 1 digit each", lines)
    summed, both = found["sum"], found["dp-sum"]
    lines = [
        Line(f"the {RANKS} of {summed.digits} digits\nthat come out best", summed.originals),
        Line.of(summed),
        Line.of(both),
        Line("control: digits that\nnobody trained on", summed.strangers[0]),
        Line("what comes closest to\nthem in the raw sum", summed.strangers[1], f"best {summed.control:.0f} dB", GREEN),
    ]
    _column(right, f"the sum: {RANKS} clients, {FEW} digits each", lines)
    picture.text(0.5, 0.015, _lesson(found), ha="center", va="bottom", size=15, linespacing=1.4)
    return picture


def _lesson(found: Findings) -> str:
    (mean, _), (another, _) = found.baselines.mean_image, found.baselines.another
    return (
        "Masked: noise to anyone without the keys. The sum is not masked: secure aggregation alone is no bound; "
        "differential privacy is one.\n"
        f"PSNR without any update: the mean digit {mean:.0f} dB, a lucky other digit {another:.0f} dB; "
        f"from {LEGIBLE:.0f} dB on it is the same picture."
    )


@dataclass(frozen=True)
class Line:
    """A row of pictures ``[3, 28, 28]`` with its caption, and how close they are."""

    caption: str
    pictures: Tensor
    level: str = ""
    colour: str = "black"

    @classmethod
    def of(cls, row: Row) -> Line:
        spent = f"\nepsilon {row.epsilon:.1f} for this step" if row.epsilon is not None else ""
        level = f"{row.psnr:.0f} dB"
        if row.digits > RANKS:
            level = f"{row.legible} of {row.digits}, best {level}"
        return cls(row.title + spent, row.pictures, level, RED if row.legible else GREEN)


def _column(side: SubFigure, heading: str, lines: Sequence[Line]) -> None:
    side.text(0.5, 0.915, heading, size=19, ha="center", va="top", weight="bold")
    margins = {"left": 0.03, "right": 0.98, "top": 0.868, "bottom": 0.09, "wspace": 0.05, "hspace": 0.08}
    grid = side.subplots(len(lines), 1 + RANKS, gridspec_kw={"width_ratios": (2.2, *[1] * RANKS), **margins})
    for axes_of_line, line in zip(np.asarray(grid), lines, strict=True):
        words, *cells = axes_of_line
        words.axis("off")
        text = line.caption + ("\n" if line.level else "")  # the level goes where the last line would be
        words.text(0.0, 0.5, text, size=16, va="center", transform=words.transAxes, linespacing=1.2)
        below = 0.5 - 0.5 * LINE * text.count("\n")
        words.text(0.0, below, line.level, size=18, va="center", weight="bold", color=line.colour)
        for axes, image in zip(cells, line.pictures.numpy(), strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for edge in axes.spines.values():
                edge.set_color("#888888")


def tensorboard(found: Findings, picture: Figure, text: str, folder: Path) -> None:
    """The figure, the table as text, and each figure of it as a scalar."""
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("what was attacked, and how", text)
        writer.add_figure("what an update gives away", picture, close=False)
        for row in found.rows:
            writer.add_scalar(f"PSNR in dB/{row.key}", row.psnr, 0)
            writer.add_scalar(f"SSIM/{row.key}", row.ssim, 0)
            writer.add_scalar(f"PSNR in dB of held-out digits/{row.key}", row.control, 0)
        writer.add_scalar("PSNR in dB/baseline mean digit", found.baselines.mean_image[0], 0)
        writer.add_scalar("PSNR in dB/baseline another digit", found.baselines.another[0], 0)
