"""The attacks of the demonstration, on what real ranks recorded: one row of the table for each point of view."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from examples.privacy.attacks.inversion import FirstLayer, candidates, one_example
from examples.privacy.attacks.similarity import Baselines, Match, closest, psnr, ssim
from examples.privacy.scenarios import RANKS
from fedddp.data import DATASETS, Dataset
from fedddp.flat import FlatSpec
from fedddp.models import MODELS

LEGIBLE = 30.0
"""dB from which a reconstruction counts as the picture itself."""


@dataclass(frozen=True)
class Recording:
    """One rank of one scenario, as `examples.privacy.record` wrote it; ``epsilon`` is what the run said it spent."""

    tensors: dict[str, Tensor]
    epsilon: float | None

    @classmethod
    def read(cls, folder: Path, scenario: str) -> list[Recording]:
        """All ranks of a scenario. Only rank 0 knows epsilon."""
        ranks = []
        for rank in range(RANKS):
            with safe_open(folder / scenario / f"rank{rank}.safetensors", "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
                ranks.append(cls(tensors, json.loads(file.metadata()["epsilon"])))
        return ranks


@dataclass(frozen=True)
class Row:
    """An attack from one point of view: what was attacked, the truth, what came out, how close that is.

    ``originals`` and ``pictures [k, 28, 28]`` are for showing, as are ``strangers [2, k, 28, 28]``: digits that nobody
    trained on, above what comes closest to them. ``psnr`` and ``ssim`` are the figures of the table: the
    median of the ranks for single digits, the best match for a sum. ``legible`` of ``digits`` reach 30 dB; ``control``:
    the PSNR that the same attack reaches on strangers. ``recorded``: type and length of what was attacked.
    """

    key: str
    title: str
    originals: Tensor
    pictures: Tensor
    psnr: float
    ssim: float
    legible: int
    digits: int
    control: float
    strangers: Tensor
    recorded: str
    epsilon: float | None

    def figures(self) -> dict[str, Any]:
        """Everything but the pictures."""
        names = ("key", "psnr", "ssim", "legible", "digits", "control", "recorded", "epsilon")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Findings:
    """Everything the demonstration shows."""

    rows: tuple[Row, ...]
    baselines: Baselines

    def __getitem__(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


class Attacker:
    """Knows the program, the model's layout and how digits are normalised; not the digits."""

    def __init__(self, recordings: Path) -> None:
        self._folder = recordings
        self._digits: Dataset = DATASETS["mnist-mini"](Path(), False)
        shape = tuple(self._digits.train.x.shape[1:])
        self._spec = FlatSpec.of(MODELS["mlp"]().build(shape, self._digits.num_classes))
        (self._mean,), (self._std,) = self._digits.mean, self._digits.std
        normalize = self._digits.normalizer(torch.float64)
        self._low, self._high = normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        self._held_out = self._digits.test.x[:, 0].double() / 255  # no client trains on them

    def findings(self) -> Findings:
        """All rows and the baselines."""
        summed = self._summed("sum", "the sum that every rank\ndecodes after masking", "sum")
        rows = (
            self._single("raw", "the raw update", "plain"),
            self._single("chunk", "the third of it that the\nring neighbour receives", "plain", chunk=True),
            self._single("masked", "masked update\n(secure aggregation)", "masked"),
            self._single("dp", "noised update\n(DP-SGD)", "noised"),
            summed,
            self._summed("dp-sum", "the sum, masked and\nnoised (DP-SGD)", "noised-sum", summed.originals),
        )
        train = self._digits.train.x[:, 0].double() / 255
        return Findings(rows, Baselines.of(self._held_out, train[torch.randperm(len(train), generator=_order())]))

    def _single(self, key: str, title: str, scenario: str, chunk: bool = False) -> Row:
        """One digit from what each rank handed out, whole or the neighbour's part of it."""
        ranks = Recording.read(self._folder, scenario)
        found, truth, update = [], [], torch.empty(0)
        for rank in ranks:
            update = rank.tensors["neighbour" if chunk else "handed"]
            offset = int(rank.tensors["offset"]) if chunk else 0
            layer = FirstLayer.of_chunk(self._spec, update, offset)
            found.append(self._picture(one_example(layer, self._low)))
            truth.append(rank.tensors["x"][0, 0].double() / 255)
        pictures, originals, strangers = torch.stack(found), torch.stack(truth), self._held_out[:RANKS]
        level = psnr(pictures, originals)
        return Row(
            key,
            title,
            originals,
            pictures,
            psnr=float(level.median()),
            ssim=float(ssim(pictures, originals).median()),
            legible=int((level >= LEGIBLE).sum()),
            digits=RANKS,
            control=float(psnr(pictures, strangers).median()),
            strangers=torch.stack([strangers, pictures]),
            recorded=f"{update.dtype} {list(update.shape)}",
            epsilon=ranks[0].epsilon,
        )

    def _summed(self, key: str, title: str, scenario: str, shown: Tensor | None = None) -> Row:
        """The digits of all ranks from the difference of two models, which every rank knows.

        Those are ``shown`` that come out best, if no others are asked for.
        """
        ranks = Recording.read(self._folder, scenario)
        first = ranks[0].tensors
        change = first["after"].double() - first["before"].double()
        layer = FirstLayer.of(self._spec, change)
        found = self._picture(candidates(layer, self._low, self._high))
        truth = torch.cat([rank.tensors["x"][:, 0] for rank in ranks]).double() / 255
        match, best = _matched(found, truth)
        control, luckiest = _matched(found, self._held_out[: len(truth)])
        strangers = self._held_out[luckiest[:RANKS]]
        originals = truth[best[:RANKS]] if shown is None else shown
        return Row(
            key,
            title,
            originals,
            found[closest(found, originals).index],
            psnr=float(match.psnr[best[0]]),
            ssim=float(match.ssim[best[0]]),
            legible=int((match.psnr >= LEGIBLE).sum()),
            digits=len(truth),
            control=float(control.psnr[luckiest[0]]),
            strangers=torch.stack([strangers, found[closest(found, strangers).index]]),
            recorded=f"difference of two models {list(change.shape)}",
            epsilon=ranks[0].epsilon,
        )

    def _picture(self, x: Tensor) -> Tensor:
        """Inputs [..., 784] as the model gets them, as pictures [..., 28, 28] in [0, 1]; unknown is black."""
        return (x * self._std + self._mean).nan_to_num(0.0).clamp(0, 1).unflatten(-1, (28, 28))


def _matched(found: Tensor, truth: Tensor) -> tuple[Match, Tensor]:
    """What was found for each picture of ``truth``, and in which order they came out, the best first."""
    match = closest(found, truth)
    return match, match.psnr.argsort(descending=True)


def _order() -> torch.Generator:
    return torch.Generator().manual_seed(0)
