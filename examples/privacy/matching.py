"""Search for the digits behind recorded updates: gradient matching, which needs no formula for the model.

    python -m examples.privacy.matching [--seed=3] [--steps=60]

The same runs as `examples.privacy.inversion`, of logistic regression (smooth, as L-BFGS needs it; the analytic
inversion reads the mlp faster). Attacked is what each of three ranks handed to the collective, and the third of it that
its neighbour in the ring received: by DLG, iDLG and the cosine with total variation. Prints PSNR and SSIM, medians over
the ranks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from examples.privacy.attacks.gradient_matching import Reconstruction, cosine, dlg, idlg
from examples.privacy.attacks.inversion import label
from examples.privacy.attacks.similarity import psnr, ssim
from examples.privacy.inversion import Failed, failed, recorded, seed_of
from examples.privacy.rows import Recording
from examples.privacy.scenarios import LR
from fedddp.data import DATASETS
from fedddp.flat import FlatModule
from fedddp.models import MODELS
from fedddp.telemetry import console, lasting_output

MODEL, SCENARIOS = "logistic", ("plain", "masked", "noised")


@dataclass(frozen=True)
class Seen:
    """What an attacker has: a flat gradient [P] of which the stretch ``part`` is known, at ``module``'s parameters."""

    module: nn.Module
    gradient: Tensor
    part: slice
    flat: FlatModule


@dataclass(frozen=True)
class Matcher:
    """The three searches on one recorded message; ``steps`` of L-BFGS (one is up to 20 evaluations)."""

    shape: tuple[int, ...]
    num_classes: int
    low: float
    high: float
    steps: int

    def dlg(self, seen: Seen) -> Reconstruction:
        return dlg(seen.module, seen.gradient, self.shape, self.num_classes, steps=self.steps, part=seen.part)

    def idlg(self, seen: Seen) -> Reconstruction:
        return idlg(seen.module, seen.gradient, self.shape, steps=self.steps, part=seen.part)

    def cosine(self, seen: Seen) -> Reconstruction:
        """The label is read off the last bias where that was seen; else each is tried and the best end point counts."""
        whole = seen.part.stop >= len(seen.gradient) and seen.part.start == 0
        labels = [label(seen.flat.spec, seen.gradient)] if whole else range(self.num_classes)
        how = {"low": self.low, "high": self.high, "steps": 10 * self.steps, "part": seen.part}
        tried = [cosine(seen.module, seen.gradient, self.shape, torch.tensor([y]), **how) for y in labels]
        return min(tried, key=lambda found: found.objective)


WAYS: dict[str, tuple[str, str, Callable[[Matcher, Seen], Reconstruction]]] = {
    "DLG": ("handed", "both ring neighbours; a tap", Matcher.dlg),
    "iDLG": ("handed", "both ring neighbours; a tap", Matcher.idlg),
    "cosine + TV": ("handed", "both ring neighbours; a tap", Matcher.cosine),
    "DLG on a third": ("neighbour", "one ring neighbour", Matcher.dlg),
    "cosine + TV on a third": ("neighbour", "one ring neighbour", Matcher.cosine),
}
"""iDLG reads the label off the last bias, which not every neighbour sees."""


def seen_of(recording: Recording, key: str, module: nn.Module) -> Seen:
    """What ``key`` (handed or neighbour) of a recording reveals about the gradient of one step of SGD."""
    flat, tensors = FlatModule(module), recording.tensors
    flat.load(tensors["before"].to(flat.w))
    handed = tensors[key].double()
    begin = int(tensors["offset"]) if key == "neighbour" else 0
    gradient = torch.zeros(flat.spec.num_trainable, dtype=torch.float64)
    known = handed[: max(0, len(gradient) - begin)]
    gradient[begin : begin + len(known)] = known / -LR
    if not tensors[key].is_floating_point():
        gradient /= gradient.norm().clamp(min=1e-30)  # of integers in the ring the attacker knows no scale
    return Seen(module, gradient, slice(begin, begin + len(known)), flat)


def findings(folder: Path, steps: int) -> Iterator[tuple[str, str, str, float, float]]:
    """(scenario, way, who can, median PSNR, median SSIM) of recordings in ``folder``."""
    digits = DATASETS["mnist-mini"](Path(), False)
    shape, (mean,), (std,) = tuple(digits.train.x.shape[1:]), digits.mean, digits.std
    normalize = digits.normalizer(torch.float64)
    low, high = normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    matcher = Matcher(shape, digits.num_classes, low, high, steps)
    for scenario in SCENARIOS:
        ranks = Recording.read(folder, scenario)
        truth = torch.stack([rank.tensors["x"][0, 0].double() / 255 for rank in ranks])
        for name, (key, who, way) in WAYS.items():
            pictures = []
            for rank in ranks:
                found = way(matcher, seen_of(rank, key, MODELS[MODEL]().build(shape, digits.num_classes).double()))
                pictures.append((found.x[0, 0] * std + mean).nan_to_num(0.0).clamp(0, 1))
            shown = torch.stack(pictures)
            yield scenario, name, who, float(psnr(shown, truth).median()), float(ssim(shown, truth).median())


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 1 failed, 2 bad usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.privacy.matching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=seed_of, default=3, help="of digits and model [3]")
    parser.add_argument("--steps", type=seed_of, default=60, help="of L-BFGS; ten times as many of the cosine [60]")
    args = parser.parse_args(argv)
    table = Table(title="digits found by gradient matching in recorded messages")
    for column in ("run", "attack", "who can", "PSNR dB", "SSIM"):
        table.add_column(column, justify="right" if column in ("PSNR dB", "SSIM") else "left")
    try:
        with tempfile.TemporaryDirectory(prefix="fedddp-demo-") as folder:
            recorded(Path(folder), args.seed, f"--model={MODEL}", "--only", *SCENARIOS)
            for scenario, name, who, level, likeness in findings(Path(folder), args.steps):
                table.add_row(scenario, name, who, f"{level:.1f}", f"{likeness:.2f}")
    except Failed as error:
        return failed(str(error), 1)
    except KeyboardInterrupt:
        return failed("stopped", 1)
    console(132).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
