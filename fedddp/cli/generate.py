"""Generate by the model of a run: images of classes by a conditional GAN, in one picture; text by a language model."""

import functools
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.saved import newest
from ..comm.world import Place
from ..config import Config, UsageError, build, merge, read_toml
from ..data import Dataset
from ..flat import FlatModule, FlatSpec
from ..registry.choice import user_path
from ..setup.dry_run import task_of
from ..setup.load import load_data
from ..setup.resolve import resolve
from ..tasks import Task, targets_of
from ..tasks.conditional_gan import drawn
from ..telemetry import figures
from .continuation import continued
from .export.command import check_run
from .outcome import asked

AT_ONCE = 200


@dataclass(frozen=True)
class Trained:
    """A run's model as its newest checkpoint has it, in evaluation mode, and what it was trained on."""

    task: Task
    module: nn.Module
    dataset: Dataset

    def predictions(self, images: Tensor) -> Tensor:
        """The class of each of ``images [n, C, H, W]`` in [0, 1], [n]."""
        dtype = next(self.module.parameters()).dtype
        x = self.dataset.normalizer(dtype)((255 * images).round().to(torch.uint8))
        with torch.no_grad():
            return torch.cat([self.module(some).argmax(dim=1) for some in x.split(AT_ONCE)])


def run(args: Namespace) -> None:
    """Draw what ``args`` ask for; see `fedddp.cli.options.generate`."""
    text, layer = args.what or args.generate, asked(args).layers
    if not text:
        raise UsageError(
            "give a run folder and the classes to draw, or the beginning of a text: fedddp generate RUN 0123456789"
        )
    if targets_of(_config(args.run, layer).task) == "positions":
        print(continued(args.run, text, args, functools.reduce(merge, layer, {})))
        return
    gan = trained(args.run, layer)
    if not gan.task.draws:
        raise UsageError(
            f"{args.run}: is neither the run of a GAN nor of a language model; generate needs one of task.name="
            "conditional_gan or next_token"
        )
    classes = _classes(text, gan.task.num_classes)
    images = drawn(gan.module, classes.repeat(args.rows), args.seed).unflatten(0, (args.rows, len(classes)))
    try:
        figures.save(figures.grid(images, scale=2), user_path(args.out))
    except ValueError as error:
        raise UsageError(f"--out={error}") from None
    print(f"{args.rows} rows of {text} drawn in {args.out}")
    if args.judge:
        judge, samples = trained(args.judge, layer), args.samples
        _check_judge(judge, args.judge, images)
        wanted = classes.repeat(-(-samples // len(classes)))[:samples]
        right = judge.predictions(drawn(gan.module, wanted, args.seed + 1)) == wanted
        print(f"{args.judge} takes {int(right.sum())} of {len(wanted)} drawings for the class that was asked for")
        each = {int(c): float(right[wanted == c].double().mean()) for c in wanted.unique()}
        print("  ".join(f"{c}: {share:.1%}" for c, share in each.items()))


def trained(folder: Path, layers: Sequence[Mapping[str, Any]] = ()) -> Trained:
    """The model of a run folder, ``layers`` on top of its configuration. Raises UsageError if it has no checkpoint."""
    config: Config = resolve(_config(folder, layers), Place())
    saved = newest(folder)
    if saved is None:
        raise UsageError(f"{folder}: has no whole checkpoint; train with checkpoint.every=1")
    dataset, _ = load_data(config)
    task = task_of(config, dataset)
    flat = FlatModule(task.model(config.run.seed).eval())
    if unlike := saved.unlike(FlatSpec.of(flat.module, whole=True)):
        raise UsageError(f"{saved.folder}: is of another model: {unlike}; give the model as it was")
    flat.load(saved.server()[0])
    return Trained(task, flat.module, dataset)


def _config(folder: Path, layers: Sequence[Mapping[str, Any]]) -> Config:
    """The configuration of a run folder. Raises UsageError for another folder."""
    check_run(folder)
    return build(read_toml(folder / "config.toml"), *layers)


def _check_judge(judge: Trained, folder: Path, images: Tensor) -> None:
    """Whether it classifies such drawings, ``images [rows, columns, C, H, W]``. Raises UsageError."""
    drawn_as, trained_on = list(images.shape[2:]), list(judge.dataset.train.x.shape[1:])
    if not judge.task.classifies:
        raise UsageError(f"--judge={folder}: is not the run of a classifier; train one on the same dataset")
    if drawn_as != trained_on:
        raise UsageError(
            f"--judge={folder}: classifies inputs of shape {trained_on}, drawings are {drawn_as}; train one on "
            "the same dataset"
        )


def _classes(text: str, num_classes: int) -> Tensor:
    parts = text.split(",") if "," in text else list(text)
    if not all(part.strip().isdecimal() and int(part) < num_classes for part in parts):
        raise UsageError(f"{text!r}: should be classes from 0 to {num_classes - 1}: 0123456789, or 3,14,15")
    return torch.tensor([int(part) for part in parts])
